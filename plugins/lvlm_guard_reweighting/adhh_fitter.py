"""Heads that speak for hallucinated objects: what silencing each of them does to the words of two answers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, ClassVar

import torch
from torch import Tensor

from lvlm_guard import (
    AttentionEdit,
    Decoder,
    Generation,
    Guard,
    InputError,
    NoEffectWarning,
    Search,
    View,
    hookimpl,
)
from lvlm_guard.fitting import Demonstration, Fitted, Track, depth_and_heads, encode_answer

COUNT = 30
"""How many heads are kept; a strategy takes the first few of them."""
ROWS = 64
"""Heads silenced side by side."""

Head = tuple[int, int]


def fit_adhh(
    model: Any,
    processor: Any,
    demonstrations: Sequence[Demonstration],
    track: Track = iter,
    *,
    count: int = COUNT,
    heads_per_batch: int = ROWS,
) -> Fitted:
    """Heads `heads [count, 2]` as (layer, head), the worst first, and `scores [layers, heads]` of all.

    Yang et al., ICLR 2025: a head's score is how much silencing it (its output is 0 wherever a token is predicted)
    lowers the mean probability of hallucinated words minus that of real ones. Words are those in which the answers of a
    demonstration differ, each behind the words before it in its own answer; where words are only added, the real one is
    what follows instead. Heads that do not lower it are not kept.

    The paper attributes on captions that the model made itself; here both answers are given.

    Args:
        model: The model.
        processor: Its processor.
        demonstrations: What to fit on.
        track: Shows progress.
        count: How many heads are kept at most.
        heads_per_batch: Heads silenced side by side, one row of a batch each.

    Raises:
        InputError: No answers differ, or no head speaks for what is hallucinated.
    """
    depth, width = depth_and_heads(model)
    heads = [(layer, head) for layer in range(depth) for head in range(width)]
    drops: dict[str, list[Tensor]] = {"real": [], "hallucinated": []}
    for demonstration in track(demonstrations):
        for kind, found in _drops(model, processor, demonstration, heads, heads_per_batch).items():
            drops[kind].append(found)
    pooled = {kind: torch.cat(found, dim=1) for kind, found in drops.items()}
    if not all(words.shape[1] for words in pooled.values()):
        raise InputError("adhh is fitted on answers that differ, and these do not.")
    scores = pooled["hallucinated"].mean(1) - pooled["real"].mean(1)
    ranked = scores.argsort(descending=True)[: min(count, int((scores > 0).sum()))]
    if not len(ranked):
        raise InputError("Silencing no head makes the hallucinated words less likely: there is nothing to switch off.")
    tensors = {"heads": torch.tensor(heads)[ranked], "scores": scores.view(depth, width)}
    return Fitted(tensors, {"count": len(ranked), **{kind: words.shape[1] for kind, words in pooled.items()}})


def _drops(
    model: Any, processor: Any, demonstration: Demonstration, heads: Sequence[Head], heads_per_batch: int
) -> dict[str, Tensor]:
    """How much silencing each head lowers the probability of each word, fp64 `[heads, words]` of real and hallucinated."""
    answers = {"real": demonstration.correct, "hallucinated": demonstration.hallucinated}
    encoded = {kind: encode_answer(model, processor, demonstration, answer) for kind, answer in answers.items()}
    said = {kind: batch["input_ids"][0, -length:].tolist() for kind, (batch, length) in encoded.items()}
    chosen = dict(zip(said, differing(*said.values()), strict=True))
    return {
        kind: _silencing(model, batch, said[kind], chosen[kind], heads, heads_per_batch)
        for kind, (batch, _) in encoded.items()
    }


def differing(real: Sequence[int], hallucinated: Sequence[int]) -> tuple[list[int], list[int]]:
    """Positions of the words in which two answers differ; where one only adds words, the other's next one instead."""
    changes = SequenceMatcher(None, real, hallucinated, autojunk=False).get_opcodes()
    parted = [change for change in changes if change[0] != "equal"]
    lost = [position for _, a, b, _, _ in parted for position in range(a, b) or range(a, len(real))[:1]]
    return lost, [position for *_, c, d in parted for position in range(c, d)]


def _silencing(
    model: Any, batch: Any, said: list[int], chosen: list[int], heads: Sequence[Head], heads_per_batch: int
) -> Tensor:
    """Probability of the chosen words, minus that with each head silenced, fp64 `[heads, words]`."""
    if not chosen:
        return torch.zeros(len(heads), 0, dtype=torch.float64)
    length = batch["input_ids"].shape[1]
    aligned = batch["input_ids"].shape
    prompt = {
        name: value[:, : length - len(said)] if value.shape[:2] == aligned else value for name, value in batch.items()
    }
    spoken = tuple(said[: max(chosen) + 1])
    heard: list[Tensor] = []
    for start in range(0, len(heads), heads_per_batch):
        strategy = Silenced(tuple(heads[start : start + heads_per_batch]), spoken, heard.append)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NoEffectWarning)  # a head may well do nothing
            Guard(model, None, [strategy]).generate(**prompt, max_new_tokens=len(spoken), min_new_tokens=0)
    return torch.cat([one[-1:, chosen] - one[:-1, chosen] for one in heard])


@dataclass(frozen=True)
class Silenced:
    """Lets every row say the same words, each with one head silenced, the last with none.

    Args:
        heads: (layer, head) of each row.
        said: The words.
        heard: Gets their probabilities, fp64 `[rows, words]`.
    """

    name: ClassVar[str] = "silenced"

    heads: tuple[Head, ...]
    said: tuple[int, ...]
    heard: Callable[[Tensor], None]

    @hookimpl
    def attention(self, gen: Generation) -> Iterable[AttentionEdit]:
        """One edit for each layer with heads to silence."""
        for layer in sorted({layer for layer, _ in self.heads}):
            yield AttentionEdit((layer, layer + 1), self._silence, keys="all", queries="predicting", stage="outputs")

    def _silence(self, outputs: Tensor, view: View) -> Tensor:
        mine = [(row, head) for row, (layer, head) in enumerate(self.heads) if layer == view.layer]
        rows, heads = torch.tensor(mine, device=outputs.device).unbind(1)
        return outputs.index_put((rows, heads), outputs.new_zeros(()))

    @hookimpl
    def search(self, gen: Generation) -> Iterable[Search]:
        """Say the words."""
        yield Search(self._say, rows_per_request=len(self.heads) + 1, shared_prompt=False)

    def _say(self, decoder: Decoder) -> Tensor:
        probabilities = []
        for token in self.said:
            now = decoder.logits().double().softmax(-1)[:, token]
            probabilities.append(now.cpu())
            decoder.append(torch.full_like(decoder.generated[:, :1].sum(1), token).long())
        self.heard(torch.stack(probabilities, dim=1))
        return decoder.generated[:1]
