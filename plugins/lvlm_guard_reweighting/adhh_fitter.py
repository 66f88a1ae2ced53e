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
    FitRefused,
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
NOISE = 2.0
"""Standard errors within which a loss of words is noise."""
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
    the word that follows instead. Only heads with a positive score are listed, and of those none without which words of the correct
    answers are lost: words that are the most likely ones with it, and not without it, by more than noise. The list ends before the
    head with which all of it, silenced together, loses such words.

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
        FitRefused: Silencing any head that promotes hallucinated words breaks correct answers.
    """
    depth, width = depth_and_heads(model)
    heads = [(layer, head) for layer in range(depth) for head in range(width)]
    single = [(head,) for head in heads]
    drops: dict[str, list[Tensor]] = {"real": [], "hallucinated": []}
    changes: list[Tensor] = []
    for demonstration in track(demonstrations):
        of_answers = _compute_drops(model, processor, demonstration, single, heads_per_batch)
        for kind, (drop, _) in of_answers.items():
            drops[kind].append(drop)
        changes.append(of_answers["real"][1])
    pooled = {kind: torch.cat(parts, dim=1) for kind, parts in drops.items()}
    if not all(words.shape[1] for words in pooled.values()):
        raise InputError("adhh is fitted on answers that differ, and these do not.")
    scores = pooled["hallucinated"].mean(1) - pooled["real"].mean(1)
    promoting = scores.argsort(descending=True)[: int((scores > 0).sum())]
    if not len(promoting):
        raise InputError("Silencing no head makes the hallucinated words less likely: there is nothing to switch off.")
    usable = _leave_out_needed(promoting, torch.cat(changes, dim=1), heads)
    nested = [tuple(heads[head] for head in usable[: size + 1].tolist()) for size in range(len(usable[:count]))]
    together = [
        _compute_drops(model, processor, demonstration, nested, heads_per_batch)["real"][1]
        for demonstration in demonstrations
    ]
    ranked = _leave_out_joined(usable[:count], torch.cat(together, dim=1))
    tensors = {"heads": torch.tensor(heads)[ranked], "scores": scores.view(depth, width)}
    counts = {kind: words.shape[1] for kind, words in pooled.items()}
    refused = len(promoting) - len(usable) + len(usable[:count]) - len(ranked)
    return Fitted(tensors, {"count": len(ranked), "refused": refused, **counts})


def _leave_out_needed(promoting: Tensor, changes: Tensor, heads: Sequence[Head]) -> Tensor:
    """Return the heads whose silencing loses no more words of correct answers than noise would.

    Args:
        promoting: Indices of heads, the worst first.
        changes: -1 for a word that is lost without a head, 1 for one that is won `[heads, words]`.
        heads: (layer, head) of each.

    Raises:
        FitRefused: There is none.
    """
    lost, won = (changes < 0).sum(1), (changes > 0).sum(1)
    usable = promoting[~_find_breaks(changes)[promoting]]
    if not len(usable):
        first = int(promoting[0])
        raise FitRefused(
            f"Every head that promotes hallucinated words is needed for correct ones: without {heads[first]} {int(lost[first])} of "
            f"{changes.shape[1]} words of the correct answers are no longer the most likely ones, and {int(won[first])} come to be. "
            "Choose a strategy that cuts no heads."
        )
    return usable


def _leave_out_joined(usable: Tensor, changes: Tensor) -> Tensor:
    """Return the first heads that can be silenced together without losing more words than noise; the first one can.

    Args:
        usable: Indices of heads, the worst first.
        changes: As above, with the first head silenced, the first two, and so on `[heads, words]`.
    """
    breaks = _find_breaks(changes)
    breaks[0] = False
    return usable[breaks.long().cumsum(0) == 0]


def _find_breaks(changes: Tensor) -> Tensor:
    """Return in which rows more words are lost than noise would, bool `[rows]`."""
    lost, won = (changes < 0).sum(1), (changes > 0).sum(1)
    return (lost - won).float() > NOISE * (lost + won).float().sqrt()


def _compute_drops(
    model: Any, processor: Any, demonstration: Demonstration, heads: Sequence[tuple[Head, ...]], heads_per_batch: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return what silencing each set of heads does to both answers.

    The drop in probability of each word, fp64 `[heads, words]`, and for every token up to the last of those whether it is lost (-1)
    or won (1) as the most likely one `[heads, tokens]`.
    """
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
    model: Any,
    batch: Any,
    answer: list[int],
    positions: list[int],
    heads: Sequence[tuple[Head, ...]],
    heads_per_batch: int,
) -> tuple[Tensor, Tensor]:
    """Return the probability of words minus that with each head silenced, fp64 `[heads, words]`, and which tokens are lost or won."""
    if not positions:
        return torch.zeros(len(heads), 0, dtype=torch.float64), torch.zeros(len(heads), 0)
    aligned = batch["input_ids"].shape
    # the last token of the prompt is forced too, so that no head is silenced in what runs once
    length = aligned[1] - len(answer) - 1
    prompt = {name: value[:, :length] if value.shape[:2] == aligned else value for name, value in batch.items()}
    forced = (int(batch["input_ids"][0, length]), *answer[: max(positions) + 1])
    probabilities: list[Tensor] = []
    best: list[Tensor] = []

    def receive(of_rows: Tensor, are_best: Tensor) -> None:
        probabilities.append(of_rows)
        best.append(are_best.float())

    for start in range(0, len(heads), heads_per_batch):
        strategy = Silenced(tuple(heads[start : start + heads_per_batch]), forced, receive)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NoEffectWarning)  # silencing a head may well have no effect
            Guard(model, None, [strategy]).generate(**prompt, max_new_tokens=len(forced), min_new_tokens=0)
    places = [position + 1 for position in positions]
    drops = torch.cat([rows[-1:, places] - rows[:-1, places] for rows in probabilities])
    return drops, torch.cat([rows[:-1, 1:] - rows[-1:, 1:] for rows in best])


@dataclass(frozen=True)
class Silenced:
    """Force the same tokens in every row, each with some heads silenced from the second token on, the last with none.

    Args:
        heads: (layer, head) of those of each row.
        tokens: The tokens.
        receive: Receives their probabilities, fp64 `[rows, tokens]`, and which of them are the most likely ones, bool alike.
    """

    name: ClassVar[str] = "silenced"

    heads: tuple[tuple[Head, ...], ...]
    tokens: tuple[int, ...]
    receive: Callable[[Tensor, Tensor], None]

    @hookimpl
    def attention(self, gen: Generation) -> Iterable[AttentionEdit]:
        """One edit for each layer with heads to silence."""
        for layer in sorted({layer for of_row in self.heads for layer, _ in of_row}):
            yield AttentionEdit((layer, layer + 1), self._silence, keys="all", queries="predicting", stage="outputs")

    def _silence(self, outputs: Tensor, view: View) -> Tensor:
        if len(outputs) <= len(self.heads):  # the prompt, which all rows share
            return outputs
        silenced = [
            (row, head) for row, of_row in enumerate(self.heads) for layer, head in of_row if layer == view.layer
        ]
        rows, heads = torch.tensor(silenced, device=outputs.device).unbind(1)
        return outputs.index_put((rows, heads), outputs.new_zeros(()))

    @hookimpl
    def search(self, gen: Generation) -> Iterable[Search]:
        """Force the tokens."""
        yield Search(self._force, rows_per_request=len(self.heads) + 1)

    def _force(self, loop: DecodingLoop) -> Tensor:
        probabilities, best = [], []
        for token in self.tokens:
            logits = loop.logits().double()
            probabilities.append(logits.softmax(-1)[:, token].cpu())
            best.append((logits.argmax(-1) == token).cpu())
            loop.append(torch.full_like(loop.generated[:, :1].sum(1), token).long())
        self.receive(torch.stack(probabilities, dim=1), torch.stack(best, dim=1))
        return loop.generated[:1]
