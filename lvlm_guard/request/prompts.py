"""Token edits of prompts: insertion, replacement and removal of images, row by row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lvlm_guard import anatomy
from lvlm_guard.errors import ModeRefused, StrategyRefused
from lvlm_guard.protocols import Config
from lvlm_guard.request.fences import find_fences
from lvlm_guard.request.image_spans import find_image_spans, merge_touching
from lvlm_guard.request.requests import Request
from lvlm_guard.strategy.branches import Branch, Insert, Replace

TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids", "moe_mm_token_type_ids")
EditedRow: TypeAlias = "list[tuple[int, int | None]]"
"""Each token of an edited prompt as (index of the old token it is, or stands behind, new id or None)."""


def edit_tokens(request: Request, branch: Branch, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return token-aligned inputs after the token edits; each row is edited without its padding, then left-padded again.

    Raises:
        ModeRefused: Positions or embeddings were passed, which cannot follow the edit.
        StrategyRefused: A row has no image placeholder where the edit needs one, or no tokens of its own.
    """
    if "position_ids" in inputs or "inputs_embeds" in inputs:
        raise ModeRefused(
            f"Branch {branch.key!r} changes the prompt, so position_ids and inputs_embeds cannot be given."
        )
    spans = find_spans(request)
    if branch.drops_image:
        _check_spans(request, branch, spans)
    aligned = ["input_ids", "attention_mask", *(name for name in TOKEN_TYPES if name in inputs)]
    if "cross_attention_mask" in inputs:
        aligned.append("cross_attention_mask")
    rows: dict[str, list[Tensor]] = {name: [] for name in aligned}
    for row in range(request.input_ids.shape[0]):
        real = request.attention_mask[row].bool()
        edited = _edit_row(request.input_ids[row][real].tolist(), request, branch, spans[row], row)
        for name in aligned:
            rows[name].append(_apply_edit(inputs[name][row][real], edited, name))
    return {name: _pad_left(values, _padding_value(name, request.config)) for name, values in rows.items()}


def find_spans(request: Request) -> list[list[range]]:
    """Return the span of each image in each prompt without its padding, fences included; spans of videos too."""
    spans = find_spans_of(request, anatomy.image_token_id(request.config), request.image_count)
    if not request.has_video:
        return spans
    videos = find_spans_of(request, anatomy.video_token_id(request.config))
    return [sorted(row + more, key=lambda span: span.start) for row, more in zip(spans, videos, strict=True)]


def find_spans_of(request: Request, placeholder: int | None, count: int | None = None) -> list[list[range]]:
    """Return the span of each image, or of each video, in each prompt without its padding.

    Args:
        request: The request.
        placeholder: Id that stands for parts of one.
        count: How many there are in the batch, where that is known: one in each row have no text between their parts, and parts
            that touch are one where there are more of them.
    """
    fences = find_fences(request.config, request.processor)
    prompts = [ids[mask] for ids, mask in zip(request.input_ids, request.attention_mask.bool(), strict=True)]
    one_image = count == len(prompts) and all(placeholder in ids.tolist() for ids in prompts)
    rows = [find_image_spans(ids.tolist(), {placeholder}, fences, one_image=one_image) for ids in prompts]
    return rows if count is None or sum(map(len, rows)) <= count else [merge_touching(row) for row in rows]


def _check_spans(request: Request, branch: Branch, spans: list[list[range]]) -> None:
    """Refuse to remove images whose parts nobody can tell from text between two images."""
    places, count = sum(map(len, spans)), request.image_count
    scattered = count is not None and not request.has_video and places > count
    tiles = count is None and request.processor is None and request.has_tiles and places > len(spans)
    if scattered or tiles:
        hint = (
            ""
            if request.processor is not None
            else " The processor names the tokens between them: Guard(model, processor)."
        )
        raise StrategyRefused(
            f"Branch {branch.key!r} drops images, but their placeholders stand in {places} places of the prompts, and nothing tells "
            f"text between two images from what was written for one.{hint}"
        )


def count_placeholders(request: Request) -> list[int]:
    """Return how many placeholders each image of the batch has, in order."""
    rows = zip(find_spans(request), request.input_ids, request.attention_mask.bool(), strict=True)
    token = anatomy.image_token_id(request.config)
    counts = [int((ids[mask][span.start : span.stop] == token).sum()) for spans, ids, mask in rows for span in spans]
    return [count for count in counts if count]


def _edit_row(old: list[int], request: Request, branch: Branch, spans: list[range], row: int) -> EditedRow:
    """Edit the prompt of one row."""
    at_image = any(isinstance(edit, Insert) and "image" in edit.place for edit in branch.tokens)
    if not spans and (branch.needs_image or at_image):
        raise StrategyRefused(
            f"Branch {branch.key!r} edits the prompt around the image, but a row has no image placeholder."
        )
    edited: EditedRow = [(index, None) for index in range(len(old))]
    for edit in branch.tokens:
        if isinstance(edit, Insert):
            edited = _insert(edited, _ids_of_row(edit, row), _find_place(edit, old, spans, request.config))
    if branch.drops_image:
        replacement = next((edit.ids for edit in branch.tokens if isinstance(edit, Replace)), ())
        edited = _drop_images(edited, spans, replacement)
    return edited


def _find_place(insert: Insert, old: list[int], spans: list[range], config: Config) -> int:
    """Return the index in the old prompt before which the new tokens go."""
    opening = getattr(config.get_text_config(decoder=True), "bos_token_id", None)
    return {
        "start": int(old[0] == opening),
        "end": len(old),
        "before_image": spans[0].start if spans else 0,
        "after_image": spans[-1].stop if spans else len(old),
    }[insert.place]


def _ids_of_row(insert: Insert, row: int) -> tuple[int, ...]:
    if insert.per_row is None:
        return insert.ids
    if row >= len(insert.per_row):
        raise StrategyRefused(f"Insert.per_row has tokens for {len(insert.per_row)} rows, the batch has more.")
    return insert.per_row[row]


def _insert(edited: EditedRow, ids: tuple[int, ...], before: int) -> EditedRow:
    unmoved = (index for index, (position, new) in enumerate(edited) if position >= before and new is None)
    place = next(unmoved, len(edited))
    neighbour = max(before - 1, 0)
    return edited[:place] + [(neighbour, new) for new in ids] + edited[place:]


def _drop_images(edited: EditedRow, spans: list[range], replacement: tuple[int, ...]) -> EditedRow:
    span_at = {index: span for span in spans for index in span}
    remaining: EditedRow = []
    for position, new in edited:
        if new is not None or position not in span_at:
            remaining.append((position, new))
        elif position == span_at[position].start:
            remaining.extend((max(position - 1, 0), token) for token in replacement)
    return remaining


def _apply_edit(values: Tensor, edited: EditedRow, name: str) -> Tensor:
    """Bring a token-aligned input of one row in line with the edit: new tokens are text and attended to."""
    positions = torch.tensor([position for position, _ in edited], device=values.device, dtype=torch.long)
    moved = values[positions]
    inserted = [index for index, (_, new) in enumerate(edited) if new is not None]
    if inserted and name != "cross_attention_mask":
        fill = {"input_ids": [new for _, new in edited if new is not None], "attention_mask": 1}.get(name, 0)
        moved[inserted] = torch.as_tensor(fill, device=values.device, dtype=values.dtype)
    return moved


def _pad_left(rows: list[Tensor], value: int) -> Tensor:
    length = max(row.shape[0] for row in rows)
    return torch.stack([torch.cat([row.new_full((length - row.shape[0], *row.shape[1:]), value), row]) for row in rows])


def _padding_value(name: str, config: Config) -> int:
    if name != "input_ids":
        return 0
    pad = getattr(config.get_text_config(decoder=True), "pad_token_id", None)
    return pad if isinstance(pad, int) and pad >= 0 else 0
