"""Heads that promote hallucinated objects: the effect of silencing each of them on the words of two answers."""

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
    DecodingLoop,
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
"""How many heads the artefact lists at most; a strategy takes the first few of them."""
HEADS_PER_BATCH = 64
"""Heads silenced in one batch, a row each."""

Head = tuple[int, int]


def fit_adhh(
    model: Any,
    processor: Any,
    demonstrations: Sequence[Demonstration],
    track: Track = iter,
    *,
    count: int = COUNT,
    heads_per_batch: int = HEADS_PER_BATCH,
) -> Fitted:
    """Fit `heads [count, 2]` as (layer, head), the worst first, and `scores [layers, heads]` of all, fp64.

    Yang et al., ICLR 2025: a head's score is how much silencing it (its output is 0 wherever a token is predicted)
    lowers the mean probability of hallucinated words minus that of real ones. Words are those in which the answers of a
    demonstration differ, each after the words before it in its own answer; where words are only added, the real one is
    the word that follows instead. Only heads with a positive score are listed.

    The paper attributes on captions that the model made itself; here both answers are given.

    Args:
        model: The model.
        processor: Its processor.
        demonstrations: The data to fit on.
        track: Shows progress.
        count: How many heads are listed at most.
        heads_per_batch: Heads silenced in one batch, a row each.

    Raises:
        InputError: No answers differ, or no head promotes hallucinated words.
    """
    depth, width = depth_and_heads(model)
    heads = [(layer, head) for layer in range(depth) for head in range(width)]
    drops: dict[str, list[Tensor]] = {"real": [], "hallucinated": []}
    for demonstration in track(demonstrations):
        for kind, drop in _compute_drops(model, processor, demonstration, heads, heads_per_batch).items():
            drops[kind].append(drop)
    pooled = {kind: torch.cat(parts, dim=1) for kind, parts in drops.items()}
    if not all(words.shape[1] for words in pooled.values()):
        raise InputError("adhh is fitted on answers that differ, and these do not.")
    scores = pooled["hallucinated"].mean(1) - pooled["real"].mean(1)
    ranked = scores.argsort(descending=True)[: min(count, int((scores > 0).sum()))]
    if not len(ranked):
        raise InputError("Silencing no head makes the hallucinated words less likely: there is nothing to switch off.")
    tensors = {"heads": torch.tensor(heads)[ranked], "scores": scores.view(depth, width)}
    return Fitted(tensors, {"count": len(ranked), **{kind: words.shape[1] for kind, words in pooled.items()}})


def _compute_drops(
    model: Any, processor: Any, demonstration: Demonstration, heads: Sequence[Head], heads_per_batch: int
) -> dict[str, Tensor]:
    """Return the drop in probability of each word by silencing each head, fp64 `[heads, words]`, for both answers."""
    answers = {"real": demonstration.correct, "hallucinated": demonstration.hallucinated}
    encoded = {kind: encode_answer(model, processor, demonstration, answer) for kind, answer in answers.items()}
    tokens = {kind: batch["input_ids"][0, -length:].tolist() for kind, (batch, length) in encoded.items()}
    positions = dict(zip(tokens, find_differences(*tokens.values()), strict=True))
    return {
        kind: _silence_heads(model, batch, tokens[kind], positions[kind], heads, heads_per_batch)
        for kind, (batch, _) in encoded.items()
    }


def find_differences(real: Sequence[int], hallucinated: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return the positions at which two answers differ.

    Where the hallucinated answer only adds words, the position of the word that follows in the real one counts.
    """
    opcodes = SequenceMatcher(None, real, hallucinated, autojunk=False).get_opcodes()
    changes = [opcode for opcode in opcodes if opcode[0] != "equal"]
    removed = [position for _, a, b, _, _ in changes for position in range(a, b) or range(a, len(real))[:1]]
    return removed, [position for *_, c, d in changes for position in range(c, d)]


def _silence_heads(
    model: Any, batch: Any, answer: list[int], positions: list[int], heads: Sequence[Head], heads_per_batch: int
) -> Tensor:
    """Return the probability of words minus that with each head silenced, fp64 `[heads, words]`."""
    if not positions:
        return torch.zeros(len(heads), 0, dtype=torch.float64)
    aligned = batch["input_ids"].shape
    length = (
        aligned[1] - len(answer) - 1
    )  # the last token of the prompt is forced too, so that no head is silenced in what runs once
    prompt = {name: value[:, :length] if value.shape[:2] == aligned else value for name, value in batch.items()}
    forced = (int(batch["input_ids"][0, length]), *answer[: max(positions) + 1])
    probabilities: list[Tensor] = []
    for start in range(0, len(heads), heads_per_batch):
        strategy = Silenced(tuple(heads[start : start + heads_per_batch]), forced, probabilities.append)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NoEffectWarning)  # silencing a head may well have no effect
            Guard(model, None, [strategy]).generate(**prompt, max_new_tokens=len(forced), min_new_tokens=0)
    places = [position + 1 for position in positions]
    return torch.cat([rows[-1:, places] - rows[:-1, places] for rows in probabilities])


@dataclass(frozen=True)
class Silenced:
    """Force the same tokens in every row, each with one head silenced from the second token on, the last with none.

    Args:
        heads: (layer, head) of each row.
        tokens: The tokens.
        receive: Receives their probabilities, fp64 `[rows, tokens]`.
    """

    name: ClassVar[str] = "silenced"

    heads: tuple[Head, ...]
    tokens: tuple[int, ...]
    receive: Callable[[Tensor], None]

    @hookimpl
    def attention(self, gen: Generation) -> Iterable[AttentionEdit]:
        """One edit for each layer with heads to silence."""
        for layer in sorted({layer for layer, _ in self.heads}):
            yield AttentionEdit((layer, layer + 1), self._silence, keys="all", queries="predicting", stage="outputs")

    def _silence(self, outputs: Tensor, view: View) -> Tensor:
        if len(outputs) <= len(self.heads):  # the prompt, which all rows share
            return outputs
        silenced = [(row, head) for row, (layer, head) in enumerate(self.heads) if layer == view.layer]
        rows, heads = torch.tensor(silenced, device=outputs.device).unbind(1)
        return outputs.index_put((rows, heads), outputs.new_zeros(()))

    @hookimpl
    def search(self, gen: Generation) -> Iterable[Search]:
        """Force the tokens."""
        yield Search(self._force, rows_per_request=len(self.heads) + 1)

    def _force(self, loop: DecodingLoop) -> Tensor:
        probabilities = []
        for token in self.tokens:
            probabilities.append(loop.logits().double().softmax(-1)[:, token].cpu())
            loop.append(torch.full_like(loop.generated[:, :1].sum(1), token).long())
        self.receive(torch.stack(probabilities, dim=1))
        return loop.generated[:1]
