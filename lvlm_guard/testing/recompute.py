"""The oracle: a formula whose branches are recomputed from scratch at every step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

ALIGNED = {"attention_mask": 1, "token_type_ids": 0, "mm_token_type_ids": 0}
Formula = Callable[[Sequence[Tensor], int], Tensor]
"""Maps the logits of every variant, and the step counted from 0, to the logits that generate should have seen."""


class Recorder(LogitsProcessor):
    """A logits processor that keeps every (prefix, scores) pair of generate's loop, and changes nothing."""

    def __init__(self) -> None:
        self.seen: list[tuple[Tensor, Tensor]] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Keep copies of the ids `[rows, length]` and scores `[rows, vocab]`."""
        self.seen.append((input_ids.detach().clone(), scores.detach().clone()))
        return scores


class Oracle:
    """Recomputes a formula over several input variants of one prompt, with no cache and no wrapper.

    Args:
        model: The model, unguarded while the oracle runs.
        variants: Inputs of main, then of each branch; one row each, unpadded or left-padded.
        formula: Takes the raw logits `[vocab]` of every variant and the index of the generated token; returns `[vocab]`.
    """

    def __init__(self, model: Any, variants: Sequence[Mapping[str, Any]], formula: Formula) -> None:
        self._model = model
        self._variants = variants
        self._formula = formula
        self._results: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}

    def logits(self, generated: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return (combined, main) logits `[vocab]` in fp32 after the `generated` tokens."""
        key = tuple(generated)
        if key not in self._results:
            raw = [next_logits(self._model, variant, key) for variant in self._variants]
            self._results[key] = self._formula(raw, len(key)), raw[0]
        return self._results[key]


def next_logits(model: Any, inputs: Mapping[str, Any], generated: Sequence[int]) -> Tensor:
    """Return raw next-token logits `[vocab]` in fp32 of one row, prompt and generated tokens run at once."""
    grown = extend(inputs, generated)
    output = model.generate(
        **grown, max_new_tokens=1, do_sample=False, use_cache=False, return_dict_in_generate=True, output_logits=True
    )
    logits: Tensor = output.logits[0][0].float()
    return logits


def extend(inputs: Mapping[str, Any], generated: Sequence[int]) -> dict[str, Any]:
    """Return inputs with `generated` tokens appended to the prompt as text."""
    grown = dict(inputs)
    tokens = torch.tensor([list(generated)], dtype=torch.long, device=inputs["input_ids"].device)
    grown["input_ids"] = torch.cat([inputs["input_ids"], tokens], dim=1)
    for name, value in ALIGNED.items():
        if name in inputs:
            grown[name] = torch.cat([inputs[name], torch.full_like(tokens, value)], dim=1)
    if (cross := inputs.get("cross_attention_mask")) is not None:
        grown["cross_attention_mask"] = torch.cat([cross, cross[:, -1:].repeat(1, tokens.shape[1], 1, 1)], dim=1)
    return grown
