"""Batches in which some rows have no image: guarded rows and plain rows apart, and their sequences together again."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn.functional import pad

from lvlm_guard import anatomy
from lvlm_guard.call.refusals import MIXED
from lvlm_guard.call.report import Report, RequestReport
from lvlm_guard.call.rules import refuse
from lvlm_guard.request.requests import Request, is_list_of_rows
from lvlm_guard.request.row_images import find_pixel_axis


def split_rows(request: Request, rows: Tensor) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the model inputs of the rows with an image, bool `[batch]`, and of those without; all images go to the first.

    Raises:
        ModeRefused: A mode that works on the whole batch.
        InputError: Images that cannot be told to belong to certain rows.
    """
    refuse(MIXED, request)
    shape, of_rows = request.input_ids.shape, find_pixel_axis(request) == "rows"
    groups: tuple[dict[str, Any], dict[str, Any]] = {}, {}
    for name, value in request.inputs.items():
        if is_list_of_rows(name, value, shape[0]):
            for group, of_group in zip(groups, (rows, ~rows), strict=True):
                group[name] = list(itertools.compress(value, of_group.tolist()))
            continue
        by_token = isinstance(value, Tensor) and value.shape[:2] == shape
        by_row = isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == shape[0]
        is_of_image = anatomy.is_image_input(name)
        if by_token or (by_row and not is_of_image):
            for group, of_group in zip(groups, (rows, ~rows), strict=True):
                group[name] = value[of_group.to(value.device)]
        elif by_row and of_rows:
            groups[0][name] = value[rows.to(value.device)]
        else:
            groups[0][name] = value
            if not is_of_image:
                groups[1][name] = value
    return groups


def join_rows(outputs: Sequence[Tensor], rows: Tensor, request: Request) -> Tensor:
    """Put the sequences of both groups `[group rows, length]` in the order of the batch, padded on the right."""
    padding, longest = _padding_token(request), max(output.shape[1] for output in outputs)
    copies = sum(len(output) for output in outputs) // len(rows)
    repeated = rows.repeat_interleave(copies).to(outputs[0].device)
    joined = outputs[0].new_full((len(repeated), longest), padding)
    for output, of_group in zip(outputs, (repeated, ~repeated), strict=True):
        joined[of_group] = pad(output, (0, longest - output.shape[1]), value=padding)
    return joined


def place_requests(report: Report, rows: Tensor) -> Report:
    """Return a report whose requests are those of the whole batch, of which `rows`, bool `[batch]`, ran guarded.

    Rows that ran plain have no changes.
    """
    copies = len(report.requests) // int(rows.sum())
    guarded = iter(report.requests)
    requests = (
        RequestReport(request * copies + copy, request, next(guarded).changes if is_guarded else ())
        for request, is_guarded in enumerate(rows.tolist())
        for copy in range(copies)
    )
    return dataclasses.replace(report, requests=tuple(requests))


def _padding_token(request: Request) -> int:
    """The token that generate pads finished rows with."""
    token = request.setting("pad_token_id")
    token = request.setting("eos_token_id") if token is None else token
    token = token[0] if isinstance(token, (list, tuple)) else token
    return 0 if token is None else int(token)
