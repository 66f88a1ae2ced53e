"""What generate's loop saw, step by step, read off its output or off a processor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lvlm_guard.testing.recompute import Recorder


@dataclass(frozen=True)
class SeenStep:
    """What generate's loop saw.

    Args:
        row: Index of the prompt.
        prefix: Generated tokens so far.
        scores: Logits, or with beams log-probabilities, `[vocab]`.
    """

    row: int
    prefix: tuple[int, ...]
    scores: Tensor


def find_longest(steps: Sequence[SeenStep], row: int) -> tuple[int, ...]:
    """Return the longest prefix that was seen of a row."""
    return max((step.prefix for step in steps if step.row == row), key=len, default=())


def list_greedy(output: Any) -> list[SeenStep]:
    """Return what greedy decoding saw: the logits of every step of every row."""
    generated = output.sequences[:, -len(output.logits) :]
    return [
        SeenStep(row, tuple(generated[row, :step].tolist()), logits[row].float())
        for step, logits in enumerate(output.logits)
        for row in range(logits.shape[0])
    ]


def list_beams(recorder: Recorder, output: Any, beams: int) -> list[SeenStep]:
    """Return what beam search saw: log-probabilities of every beam at every step."""
    if not recorder.seen:  # this generate drops logits processors, so the beams that it returns have to do
        return _list_returned_beams(output, beams)
    start = recorder.seen[0][0].shape[1]
    return [
        SeenStep(row // beams, tuple(ids[row, start:].tolist()), scores[row].float())
        for ids, scores in recorder.seen
        for row in range(ids.shape[0])
    ]


def _list_returned_beams(output: Any, beams: int) -> list[SeenStep]:
    """Return what was seen on the way of every beam that generate returned."""
    generated = output.sequences[:, -len(output.scores) :]
    return [
        SeenStep(int(source) // beams, tuple(tokens[:step].tolist()), output.scores[step][source].float())
        for tokens, sources in zip(generated, output.beam_indices.tolist(), strict=True)
        for step, source in enumerate(sources)
        if source >= 0
    ]
