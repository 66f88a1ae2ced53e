"""Runs a contrast on one prompt, and compares its logits with a formula."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from gold import SUPPRESSED
from torch import Tensor

from lvlm_guard import Guard
from lvlm_guard.testing.contract import Words
from lvlm_guard.testing.tiny import IMAGE_TOKEN


def measure_effect(logits: Tensor, main: Tensor, combined: Tensor, beta: float) -> float:
    """Check logits `[vocab]` of one step against the formula; return its effect on plausible tokens."""
    plausible = main >= main.max() + math.log(beta)
    assert bool(plausible.any())
    assert float((logits - combined)[plausible].abs().max()) <= 1e-4
    assert float((logits - (main - 1e4))[~plausible].abs().max()) <= 1e-2  # fp32 has three digits down there
    return float((combined - main)[plausible].abs().max())


def run_guarded(
    model: Any, inputs: Mapping[str, Tensor], strategy: Any, tokens: int = 4
) -> tuple[list[int], list[Tensor]]:
    """Return the tokens of a guarded call and the logits `[vocab]` of each step."""
    guard = Guard(model, Words(), [strategy])
    settings: dict[str, Any] = {"max_new_tokens": tokens, "do_sample": False, "suppress_tokens": SUPPRESSED}
    output = guard.generate(**inputs, **settings, return_dict_in_generate=True, output_logits=True)
    return output.sequences[0, inputs["input_ids"].shape[1] :].tolist(), [step[0] for step in output.logits]


def without_image(inputs: Mapping[str, Tensor], *instead: int) -> dict[str, Tensor]:
    """Return a prompt with other tokens in place of its image."""
    ids = [token for token in inputs["input_ids"][0].tolist() if token != IMAGE_TOKEN]
    first = inputs["input_ids"][0].tolist().index(IMAGE_TOKEN)
    ids[first:first] = instead
    tensor = torch.tensor([ids])
    return {"input_ids": tensor, "attention_mask": torch.ones_like(tensor)}
