"""The rows of a batch as ids without padding, and laid out behind a beginning that all of them share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lvlm_guard.errors import InputError
from lvlm_guard.request.prompts import TOKEN_TYPES
from lvlm_guard.request.requests import Request

ALIGNED = ("input_ids", "attention_mask", *TOKEN_TYPES, "cross_attention_mask")
"""Model inputs that have an entry for each token."""


def list_rows(inputs: Mapping[str, Any]) -> list[list[int]]:
    """Return the ids of each row without padding."""
    pairs = zip(inputs["input_ids"], inputs["attention_mask"].bool(), strict=True)
    return [ids[mask].tolist() for ids, mask in pairs]


def list_prompts(request: Request) -> list[list[int]]:
    """Return the ids of each prompt of a request without padding.

    Raises:
        InputError: Tokens are masked between others.
    """
    mask = request.attention_mask
    if bool((mask[:, 1:] < mask[:, :-1]).any()):
        raise InputError(
            "A prompt masks tokens behind others, which a look does not follow: leave them out, or pass whole prompts to guard.generate."
        )
    return list_rows({"input_ids": request.input_ids, "attention_mask": mask})


def continue_all(rows: Sequence[Sequence[int]], beginning: Sequence[int]) -> bool:
    """Return whether every row begins so and goes on."""
    length = len(beginning)
    return all(len(row) > length and tuple(row[:length]) == tuple(beginning) for row in rows)


def count_shared(row: Sequence[int], second_row: Sequence[int]) -> int:
    """Return how many ids two rows have in common before they differ."""
    pairs = zip(row, second_row, strict=False)
    return next((index for index, (left, right) in enumerate(pairs) if left != right), min(len(row), len(second_row)))


def take_rows(inputs: Mapping[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    """Return the aligned inputs of rows that have as many tokens each, without padding and gaps."""
    masks = inputs["attention_mask"].bool()
    return {
        name: torch.stack([values[row][masks[row].to(values.device)] for row in rows])
        for name in ALIGNED
        if isinstance(values := inputs.get(name), Tensor)
    }


def cut_rows(inputs: Mapping[str, Any], length: int) -> dict[str, Any]:
    """Return the first `length` positions of the aligned inputs of rows without padding."""
    return {name: inputs[name][:, :length] for name in ALIGNED if isinstance(inputs.get(name), Tensor)}


def lay_out_behind(inputs: Mapping[str, Any], length: int) -> dict[str, Any]:
    """Return the aligned inputs with the first `length` tokens of every row on the left, what follows on the right, a gap between.

    The gap is masked, as padding is. Rows keep their tokens in order, and rows of one length have no gap.
    """
    masks = inputs["attention_mask"].bool()
    longest = int(masks.sum(1).max())
    padding = _find_padding(inputs["input_ids"], masks)
    laid_out = {}
    for name in ALIGNED:
        if isinstance(values := inputs.get(name), Tensor):
            fill = padding if name == "input_ids" else 0
            rows = [
                _spread(row[mask.to(row.device)], length, longest, fill)
                for row, mask in zip(values, masks, strict=True)
            ]
            laid_out[name] = torch.stack(rows)
    return laid_out


def _spread(row: Tensor, length: int, longest: int, fill: int) -> Tensor:
    gap = row.new_full((longest - row.shape[0], *row.shape[1:]), fill)
    return torch.cat([row[:length], gap, row[length:]])


def _find_padding(ids: Tensor, masks: Tensor) -> int:
    """Return the id that stands in the padding; 0 where there is none."""
    padding = ids[~masks.to(ids.device)]
    return int(padding[0]) if padding.numel() else 0
