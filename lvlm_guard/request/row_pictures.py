"""Which picture each row of a batch is about."""

from __future__ import annotations

from typing import Any

from lvlm_guard.errors import InputError, ProcessorNeeded
from lvlm_guard.request.requests import Pictures, Request


def find_pictures_of_rows(request: Request) -> tuple[tuple[Any, ...] | None, str]:
    """Return the picture of each row, or None and the reason where not every row is known to have one of its own."""
    try:
        pictures = know_pictures(request)
        return tuple(pictures.pictures[find_picture(request, row)] for row in range(len(request.input_ids))), ""
    except InputError as reason:
        return None, str(reason)


def know_pictures(request: Request) -> Pictures:
    """Return the pictures behind a request.

    Raises:
        ProcessorNeeded: They are not known.
    """
    if request.pictures is None:
        raise ProcessorNeeded(
            "The pictures behind these inputs are unknown: make the inputs with guard.inputs or guard.chat."
        )
    if request.pictures.missing:
        raise ProcessorNeeded(request.pictures.missing)
    return request.pictures


def find_picture(request: Request, row: int) -> int:
    """Return the number of the picture of a row, in the order of the pixels, by the placeholders of all rows.

    Raises:
        ProcessorNeeded: The pictures are not known.
        InputError: There is no such row, it has no picture or several, or nothing tells how many it has.
    """
    rows = len(request.input_ids)
    if not 0 <= row < rows:
        raise InputError(f"There is no row {row}: the rows of this call are 0 to {rows - 1}.")
    with_image = request.image_mask.any(1).tolist()
    if request.stands_beside:
        with_image = [True] * rows
    if not with_image[row]:
        raise InputError(
            f"Row {row} has no picture, and one is needed: pass rows without a picture in a call of their own."
        )
    count = len(know_pictures(request).pictures)
    if count == sum(with_image):
        return sum(with_image[:row])
    raise InputError(
        f"Row {row} has no picture that is known to be the only one: there are {count} pictures for {sum(with_image)} of {rows} "
        "rows. Pass rows with several pictures in a call of their own, and give other rows one each."
        if rows > 1
        else f"Row 0 has {count} pictures, and it must be clear which is meant: pass one picture for each row."
    )
