"""The pictures of a diagnosis: attention, logit lens and occlusion for the words most worth looking at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from lvlm_guard.diagnosis.answer import occlusion
from lvlm_guard.diagnosis.answer.forcing import AnswerRequest, ScoredAnswer
from lvlm_guard.diagnosis.answer.lens import read_lens
from lvlm_guard.diagnosis.answer.result import AnswerMaps, WordDiagnosis
from lvlm_guard.errors import GuardError

MOST_WORDS = 12
"""Words that have maps: the doubtful ones, then the other words about the picture, by doubt."""


class Progress(Protocol):
    """What shows how far it is."""

    @property
    def watch(self) -> Callable[[str], None]:
        """Called with what runs next."""
        ...

    @property
    def track(self) -> Callable[[Any], Any]:
        """Goes round the longest loop."""
        ...


def draw_maps(
    request: AnswerRequest,
    ids: Sequence[int],
    words: Sequence[WordDiagnosis],
    scored: ScoredAnswer,
    cells: int,
    partial: list[str],
    progress: Progress,
) -> AnswerMaps:
    """Return the maps of an answer, and note what there is none of.

    Args:
        request: What was asked.
        ids: The tokens of the answer.
        words: Its words.
        scored: What a forced run gave.
        cells: Cells along each side that are covered; 0 covers none.
        partial: Receives a sentence for each map that there is none of.
        progress: Shows how far it is.
    """
    if len(request.pictures) != 1:
        partial.append("No maps: they are drawn for one picture.")
        return AnswerMaps()
    numbers = choose_words(words)
    progress.watch("lens")
    layers = _try(
        lambda: read_lens(request, ids, [ids[words[number].first_token] for number in numbers]), "logit lens", partial
    )
    covered = _occlude(request, ids, words, numbers, cells, partial, progress) if cells and numbers else {}
    patches = scored.record.patches
    if "attention" in scored.features and not patches:
        partial.append("No attention maps: the layers hold different numbers of image tokens.")
    return AnswerMaps(
        grid=scored.record.grid,
        attention=_mean_heads(scored.record.masses, [word for word in words if word.level is not None] or words),
        attended={
            number: tuple(patches[words[number].first_token].tolist())
            for number in numbers
            if words[number].first_token < len(patches)
        },
        lens={}
        if layers is None
        else {
            number: tuple(tuple(layer[:, place].tolist()) for layer in layers) for place, number in enumerate(numbers)
        },
        occlusion_grid=(cells, cells) if covered else (0, 0),
        occlusion=covered,
    )


def choose_words(words: Sequence[WordDiagnosis]) -> list[int]:
    """Return the numbers of the words that have maps, in their order."""
    candidates = [number for number, word in enumerate(words) if word.is_doubtful or word.level is not None]
    ranked = sorted(candidates, key=lambda number: (not words[number].is_doubtful, -words[number].doubt))
    return sorted(ranked[:MOST_WORDS])


def _try(draw: Callable[[], list[Tensor]], name: str, partial: list[str]) -> list[Tensor] | None:
    try:
        return draw()
    except GuardError as error:
        partial.append(f"No {name}: {error}")
        return None


def _occlude(
    request: AnswerRequest,
    ids: Sequence[int],
    words: Sequence[WordDiagnosis],
    numbers: Sequence[int],
    cells: int,
    partial: list[str],
    progress: Progress,
) -> dict[int, tuple[float, ...]]:
    progress.watch("occlusion")
    spans = {
        number: (words[number].first_token, words[number].first_token + words[number].tokens) for number in numbers
    }
    near = {number: span for number, span in spans.items() if span[1] <= occlusion.MOST_TOKENS}
    if len(near) < len(spans):
        partial.append(f"No occlusion of words behind token {occlusion.MOST_TOKENS}.")
    if max(request.pictures[0].size) > occlusion.LARGEST:
        partial.append(f"For occlusion the picture was made smaller, to {occlusion.LARGEST} pixels.")
    if not near:
        return {}
    falls = _try(
        lambda: list(occlusion.occlude(request, ids, list(near.values()), cells, progress.track)), "occlusion", partial
    )
    return {} if falls is None else {number: tuple(fall.tolist()) for number, fall in zip(near, falls, strict=True)}


def _mean_heads(masses: dict[int, list[Tensor]], words: Sequence[WordDiagnosis]) -> tuple[tuple[float, ...], ...]:
    """Return for each layer the share of each head's attention on the image, the mean over words."""
    tokens = [word.first_token for word in words]
    return tuple(
        tuple(torch.stack([masses[layer][token] for token in tokens]).mean(0).tolist()) for layer in sorted(masses)
    )
