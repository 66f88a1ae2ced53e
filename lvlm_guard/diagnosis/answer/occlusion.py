"""Occlusion: cover one cell of the picture after the other, and see how far the log-probability of a word falls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice, pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lvlm_guard.diagnosis.answer.forcing import AnswerRequest, force
from lvlm_guard.strategy.generation import Generation
from lvlm_guard.strategy.hookspecs import hookimpl

AT_ONCE = 12
"""Pictures of a batch."""
LARGEST = 2048
"""Longest side of what is covered, in pixels: larger pictures are made smaller first."""
MOST_TOKENS = 256
"""Words that end behind so many tokens have no map."""

Track = Callable[[Iterable[Any]], Iterable[Any]]


@dataclass(frozen=True, eq=False)
class ProbabilityRecorder:
    """Keep the log-probability of each token of an answer in every row; nothing is changed.

    Args:
        ids: The tokens.
        columns: Receives `[rows]` for each token.
    """

    name: ClassVar[str] = "probability_recorder"

    ids: tuple[int, ...]
    columns: Any

    @hookimpl
    def observe(self, gen: Generation) -> None:
        """Keep what the rows think of the next token."""
        if gen.step < len(self.ids):
            logs = gen.combined[:, -1].float().log_softmax(-1)
            self.columns.append(logs[:, self.ids[gen.step]].cpu())


def compute_log_probabilities(request: AnswerRequest, pictures: Sequence[Any], ids: Sequence[int]) -> Tensor:
    """Return the log-probability of each token of an answer to a question about each of some pictures `[pictures, tokens]`."""
    columns: list[Tensor] = []
    recorder = ProbabilityRecorder(tuple(ids), columns)
    force(request.guard.using([*request.split_stack()[0], recorder]), request.encode(pictures), ids)
    return torch.stack(columns, dim=1)


def cover_cells(picture: Image.Image, cells: int) -> Iterator[Image.Image]:
    """Yield a picture with each cell of a grid in turn in the mean colour of the picture, row by row."""
    levels = np.asarray(picture.convert("RGB"))
    colour = levels.reshape(-1, 3).mean(0).round().astype(np.uint8)
    for top, bottom in cut_side(levels.shape[0], cells):
        for left, right in cut_side(levels.shape[1], cells):
            covered = levels.copy()
            covered[top:bottom, left:right] = colour
            yield Image.fromarray(covered)


def cut_side(length: int, cells: int) -> list[tuple[int, int]]:
    """Return where each of some cells begins and ends along a side of a picture."""
    edges = [round(number * length / cells) for number in range(cells + 1)]
    return list(pairwise(edges))


def shrink(picture: Image.Image) -> Image.Image:
    """Return a picture whose longest side is at most `LARGEST`, itself where it is."""
    longest = max(picture.size)
    if longest <= LARGEST:
        return picture
    width, height = (max(round(side * LARGEST / longest), 1) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def occlude(
    request: AnswerRequest, ids: Sequence[int], spans: Sequence[tuple[int, int]], cells: int, track: Track
) -> Tensor:
    """Return how many nats each word loses where each cell is covered `[words, cells * cells]`, fp32.

    Args:
        request: What was asked, about one picture.
        ids: The tokens of the answer.
        spans: The first token of each word and the one behind its last.
        cells: Cells along each side.
        track: Goes round the loop over batches, and shows progress.
    """
    picture = shrink(request.pictures[0])
    ids = ids[: max(end for _, end in spans)]
    pictures = chain([picture], cover_cells(picture, cells))
    batches = range(0, cells * cells + 1, AT_ONCE)
    logs = torch.cat([compute_log_probabilities(request, list(islice(pictures, AT_ONCE)), ids) for _ in track(batches)])
    words = torch.stack([logs[:, first:end].sum(1) for first, end in spans])
    return words[:, :1] - words[:, 1:]
