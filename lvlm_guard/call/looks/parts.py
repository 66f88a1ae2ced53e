"""Prompts of several lengths on a look: in groups of one length where they cannot stand in one batch, and put together again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lvlm_guard.call.answered import SHARED
from lvlm_guard.call.looks.memory import Opening
from lvlm_guard.call.looks.rows import ALIGNED, lay_out_behind, take_rows
from lvlm_guard.call.report import Forwards, Report, RequestReport, StrategyReport
from lvlm_guard.request.requests import Pictures, Request

GAP = 3
"""Positions of a gap that is tried."""


def group_rows(lengths: Sequence[int]) -> list[list[int]]:
    """Return the numbers of the rows of each length, in the order in which lengths first occur."""
    groups: dict[int, list[int]] = {}
    for row, length in enumerate(lengths):
        groups.setdefault(length, []).append(row)
    return list(groups.values())


def select_rows(request: Request, opening: Opening, rows: Sequence[int], settings: Mapping[str, Any]) -> Request:
    """Return some rows of a request on a look as a request of their own, with the pictures of the look for each."""
    inputs = repeat_inputs(opening.inputs, len(rows))
    inputs |= take_rows({**request.inputs, "attention_mask": request.attention_mask}, rows)
    pictures = repeat_pictures(opening.pictures, len(rows))
    return Request(inputs, dict(settings), request.config, request.processor, pictures, request.defaults)


def is_ragged(request: Request) -> bool:
    """Return whether rows of a request differ in length."""
    return bool((request.attention_mask.sum(1) != request.attention_mask.shape[1]).any())


def build_gap_request(row: Request, opening: Opening) -> Request:
    """Return one prompt beside a longer one, both laid out behind the opening, so that the first has a gap."""
    aligned = {name: row.inputs[name] for name in ALIGNED if isinstance(row.inputs.get(name), Tensor)}
    longer = {name: torch.cat([value, *[value[:, -1:]] * GAP], dim=1) for name, value in aligned.items()}
    padded = {
        name: torch.cat([torch.zeros_like(value[:, :1])] * GAP + [value], dim=1) for name, value in aligned.items()
    }
    both = {name: torch.cat([padded[name], longer[name]]) for name in aligned}
    inputs = {**repeat_inputs(row.inputs, 2), **lay_out_behind(both, len(opening.ids))}
    pictures = repeat_pictures(row.pictures, 2)
    return Request(inputs, dict(row.settings), row.config, row.processor, pictures, row.defaults)


def repeat_inputs(inputs: Mapping[str, Any], times: int) -> dict[str, Any]:
    """Return model inputs of one prompt as those of `times` equal prompts: an entry for each, or for each part of its images."""
    return {name: _repeat(value, times) for name, value in inputs.items()}


def _repeat(value: Any, times: int) -> Any:
    if isinstance(value, Tensor):
        return torch.cat([value] * times) if value.ndim else value
    return value * times if isinstance(value, (list, tuple)) else value


def repeat_pictures(pictures: Pictures | None, times: int) -> Pictures | None:
    """Return the pictures of one prompt as those of `times` equal prompts."""
    if pictures is None or times == 1:
        return pictures
    size = len(pictures.pictures)

    def process(values: list[Any]) -> Mapping[str, Any]:
        parts = [pictures.process(values[start : start + size]) for start in range(0, len(values), size)]
        return {name: _join([part[name] for part in parts]) for name in parts[0]}

    return Pictures(pictures.pictures * times, process, pictures.missing, pictures.options * times)


def _join(values: list[Any]) -> Any:
    if isinstance(values[0], Tensor):
        return torch.cat(values) if len({value.shape[1:] for value in values}) == 1 else values[0]
    return [each for value in values for each in value] if isinstance(values[0], (list, tuple)) else values[0]


def join_outputs(outputs: Sequence[Tensor], groups: Sequence[Sequence[int]], prompts: Tensor, padding: int) -> Tensor:
    """Return sequences of all rows in the order of the batch, padded on the right.

    Args:
        outputs: Generated tokens of each group `[rows * copies, tokens]`.
        groups: The rows of each group.
        prompts: Prompts of the whole batch `[rows, length]`.
        padding: Id that rows which ended earlier are filled up with.
    """
    copies = outputs[0].shape[0] // len(groups[0])
    longest = max(output.shape[1] for output in outputs)
    joined = outputs[0].new_full((prompts.shape[0] * copies, longest), padding)
    for output, rows in zip(outputs, groups, strict=True):
        index = torch.tensor([row * copies + number for row in rows for number in range(copies)], device=output.device)
        joined[index, : output.shape[1]] = output
    return torch.cat([prompts.repeat_interleave(copies, dim=0).to(joined.device), joined], dim=1)


def join_reports(reports: Sequence[Report], groups: Sequence[Sequence[int]]) -> Report:
    """Return the report of a call that ran in groups of rows: counts added up, forwards averaged over the groups."""
    first, copies = reports[0], len(reports[0].requests) // len(groups[0])
    strategies = tuple(
        _join_strategies(entries) for entries in zip(*(each.strategies for each in reports), strict=True)
    )
    prefill = sum(report.forwards.prefill for report in reports)
    decode = sum(report.forwards.decode for report in reports)
    requests = [
        dataclasses.replace(entry, row=rows[entry.request] * copies + entry.row % copies, request=rows[entry.request])
        for report, rows in zip(reports, groups, strict=True)
        for entry in report.requests
    ]
    return dataclasses.replace(
        first,
        strategies=strategies,
        forwards=Forwards(prefill, decode),
        rows=sum(report.rows for report in reports),
        tokens=max(report.tokens for report in reports),
        seconds=sum(report.seconds for report in reports),
        requests=tuple(sorted(requests, key=_number)),
        questions=_join_questions(reports),
    )


def _join_questions(reports: Sequence[Report]) -> dict[str, str]:
    """Return how prompts of questions ran in all groups: why they did not go on from those of the call, if any did not."""
    joined: dict[str, str] = {}
    for report in reports:
        for name, reason in report.questions.items():
            joined[name] = reason if joined.get(name, SHARED) == SHARED else joined[name]
    return joined


def _number(entry: RequestReport) -> int:
    return entry.row


def _join_strategies(entries: Sequence[StrategyReport]) -> StrategyReport:
    changed = [entry.tokens_changed for entry in entries]
    return dataclasses.replace(
        entries[0],
        tokens_changed=None if None in changed else sum(count or 0 for count in changed),
        positions=sum(entry.positions for entry in entries),
        had_effect=any(entry.had_effect for entry in entries),
        answers_revised=sum(entry.answers_revised for entry in entries),
    )
