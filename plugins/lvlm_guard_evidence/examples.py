"""Labelled pictures as tensors: which tokens show what, and what each picture holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lvlm_guard import InputError
from lvlm_guard.fitting import LabelledPicture
from lvlm_guard_evidence.names import NamesTable, tidy

BASE_SHARE = 10.0
"""Most that one picture weighs against another where a habit is broken."""


@dataclass(frozen=True, eq=False)
class PictureLabels:
    """What labelled pictures hold.

    Args:
        table: Names.
        values: Attribute values.
        present: 1 where a picture shows an object, 0 where it does not, NaN where nobody knows `[pictures, names]`.
        described: Whether an object has a value, 1 or 0, NaN where nobody knows `[pictures, names, values]`.
        counts: How many of each a picture shows `[pictures, names]`.
        boxes: Boxes of each picture by index of the name, as shares of the picture (left, top, right, bottom).
    """

    table: NamesTable
    values: tuple[str, ...]
    present: Tensor
    described: Tensor
    counts: Tensor
    boxes: tuple[dict[int, list[tuple[float, ...]]], ...]

    @property
    def is_exclusive(self) -> bool:
        """Whether no object has two values."""
        return not bool((self.described.nan_to_num().sum(-1) > 1).any())

    def find_tokens(self, picture: int, places: Tensor) -> Tensor:
        """Return which tokens lie in a box of each name, bool `[names, tokens]`: the nearest one where a box holds none."""
        inside = torch.zeros(len(self.table.names), len(places), dtype=torch.bool)
        if bool(places.isnan().all()):
            return inside
        rows, columns = places[:, 0], places[:, 1]
        for index, boxes in self.boxes[picture].items():
            for left, top, right, bottom in boxes:
                within = (columns >= left) & (columns <= right) & (rows >= top) & (rows <= bottom)
                if not bool(within.any()):
                    away = (columns - (left + right) / 2) ** 2 + (rows - (top + bottom) / 2) ** 2
                    within = away == away.nan_to_num(torch.inf).min()
                inside[index] |= within
        return inside


def read_labels(
    pictures: Sequence[LabelledPicture],
    sizes: Sequence[tuple[int, int]],
    table: NamesTable,
    values: Sequence[str] | None = None,
) -> PictureLabels:
    """Return the labels of pictures as tensors; names outside the table are left out.

    Args:
        pictures: With objects.
        sizes: Width and height of each.
        table: Names.
        values: Attribute values; those of the labels where None.
    """
    chosen = _list_values(pictures) if values is None else tuple(values)
    present = torch.zeros(len(pictures), len(table.names))
    numbers = torch.zeros_like(present)
    described = torch.full((*present.shape, len(chosen)), torch.nan)
    boxes: list[dict[int, list[tuple[float, ...]]]] = []
    for number, (picture, size) in enumerate(zip(pictures, sizes, strict=True)):
        named = [(table.find(thing.name), thing) for thing in picture.objects or ()]
        valid = [(table.names.index(name), thing) for name, thing in named if name is not None]
        counts = Counter(index for index, _ in valid)
        boxes.append({})
        for index, thing in valid:
            present[number, index] = 1
            numbers[number, index] = counts[index]
            if thing.box is not None:
                boxes[-1].setdefault(index, []).append(_share(thing.box, size))
            attributes = {tidy(value) for value in thing.attributes} & set(chosen)
            if attributes and counts[index] == 1:
                described[number, index] = torch.tensor([float(value in attributes) for value in chosen])
    return PictureLabels(table, chosen, present, described, numbers, tuple(boxes))


def _list_values(pictures: Sequence[LabelledPicture]) -> tuple[str, ...]:
    values = (tidy(value) for picture in pictures for thing in picture.objects or () for value in thing.attributes)
    return tuple(dict.fromkeys(values))


def _share(box: Sequence[float], size: tuple[int, int]) -> tuple[float, ...]:
    wide, high = size
    return box[0] / wide, box[1] / high, box[2] / wide, box[3] / high


def weigh_presence(present: Tensor) -> Tensor:
    """Return a weight for each picture and name, so that neither how common an object is nor its company tells it `[pictures, names]`.

    Of each name the two halves, with and without it, weigh the same; and so do, in each half, pictures with and without the
    object that goes with it most. No picture weighs more than ten times the mean.
    """
    valid = present.nan_to_num()
    weights = torch.zeros_like(valid)
    company = _find_company(valid)
    for index in range(valid.shape[1]):
        cells = valid[:, index] * 2 + valid[:, company[index]] if company[index] != index else valid[:, index] * 2
        for cell in set(cells.tolist()):
            inside = cells == cell
            weights[inside, index] = 1.0 / float(inside.float().mean())
    weights = weights.clamp(max=BASE_SHARE * weights.mean(0, keepdim=True))
    weights = weights.masked_fill(present.isnan(), 0.0)
    return weights / weights.mean(0, keepdim=True).clamp(min=1e-9)


def _find_company(valid: Tensor) -> list[int]:
    """Return for each name the other one whose presence tells most of its own."""
    centred = valid - valid.mean(0)
    spread = centred.square().mean(0).sqrt().clamp(min=1e-6)
    likeness = ((centred.T @ centred) / len(valid) / spread[:, None] / spread).abs()
    likeness.fill_diagonal_(-1.0)
    return [int(index) for index in likeness.argmax(1)] if valid.shape[1] > 1 else [0]


def weigh_values(described: Tensor) -> Tensor:
    """Return a weight for each described object, so that its name does not tell its values `[pictures, names]`."""
    valid = ~described.isnan().any(-1)
    weights = torch.zeros(described.shape[:2])
    for index in range(described.shape[1]):
        rows = valid[:, index].nonzero().flatten()
        if not len(rows):
            continue
        values = described[rows, index]
        shares = values.mean(0).clamp(min=1 / len(rows))
        each = (values / shares).sum(-1) / values.sum(-1).clamp(min=1)
        weights[rows, index] = each.clamp(max=BASE_SHARE * float(each.mean()))
    return weights / weights[valid].mean().clamp(min=1e-9) if bool(valid.any()) else weights


def check_labels(labels: PictureLabels) -> None:
    """Check that something can be learnt.

    Raises:
        InputError: No picture shows anything, or every picture shows the same.
    """
    if not labels.table.names or not bool((labels.present == 1).any()):
        raise InputError(
            "'patch_evidence' needs pictures with objects, and no object is labelled in any of these: label some."
        )
    varied = labels.present.nan_to_num().std(0) > 0
    if not bool(varied.any()):
        raise InputError(
            "'patch_evidence' needs pictures that differ, and these all show the same objects: give others."
        )
