"""Token edits of prompts: insertion, replacement and removal of images, row by row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from lvlm_guard import anatomy
from lvlm_guard.errors import ModeRefused, StrategyRefused
from lvlm_guard.strategy.branches import Branch, Insert, Replace

TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids", "moe_mm_token_type_ids")
Edited: TypeAlias = "list[tuple[int, int | None]]"  # (old token it is or stands behind, new id or None)


class PromptRequest(Protocol):
    """The part of a request that token edits read."""

    config: Any
    processor: Any
    input_ids: Tensor
    attention_mask: Tensor


def edit(request: PromptRequest, branch: Branch, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Token-aligned inputs after the token edits, each row edited without its padding and padded on the left again."""
    if "position_ids" in inputs or "inputs_embeds" in inputs:
        raise ModeRefused(
            f"Branch {branch.key!r} changes the prompt, so position_ids and inputs_embeds cannot be given."
        )
    fences = anatomy.fence_ids(request.config, request.processor)
    aligned = ["input_ids", "attention_mask", *(name for name in TOKEN_TYPES if name in inputs)]
    if "cross_attention_mask" in inputs:
        aligned.append("cross_attention_mask")
    rows: dict[str, list[Tensor]] = {name: [] for name in aligned}
    for row in range(request.input_ids.shape[0]):
        real = request.attention_mask[row].bool()
        source = _edit_row(request.input_ids[row][real], request, branch, fences, row)
        for name in aligned:
            rows[name].append(_follow(inputs[name][row][real], source, name))
    return {name: _left_pad(values, _padding(name, request.config)) for name, values in rows.items()}


def _edit_row(ids: Tensor, request: PromptRequest, branch: Branch, fences: frozenset[int], row: int) -> Edited:
    """Edit one prompt; each resulting token as (index of the old token it is, or stands behind, new id or None)."""
    token = anatomy.image_token_id(request.config)
    old = ids.tolist()
    at_image = any(isinstance(one, Insert) and "image" in one.place for one in branch.tokens)
    if (token is None or token not in old) and (branch.needs_image or at_image):
        raise StrategyRefused(
            f"Branch {branch.key!r} edits the prompt around the image, but a row has no image placeholder."
        )
    spans = _image_spans(old, token, fences)
    result: Edited = [(index, None) for index in range(len(old))]
    for one in branch.tokens:
        if isinstance(one, Insert):
            result = _insert(result, _row_ids(one, row), _place(one, old, spans, request.config))
    if branch.drops_image:
        result = _drop(result, spans, next((one.ids for one in branch.tokens if isinstance(one, Replace)), ()))
    return result


def _image_spans(ids: list[int], token: int | None, fences: frozenset[int]) -> list[range]:
    """Runs of placeholders with their fences: `[start image image end]` is one span."""
    spans: list[range] = []
    index = 0
    while index < len(ids):
        stop = index
        while stop < len(ids) and (ids[stop] == token or ids[stop] in fences):
            stop += 1
        if token in ids[index:stop]:
            spans.append(range(index, stop))
        index = max(stop, index + 1)
    return spans


def _place(insert: Insert, old: list[int], spans: list[range], config: Any) -> int:
    """Index in the old prompt before which the new tokens go."""
    opening = getattr(config.get_text_config(decoder=True), "bos_token_id", None)
    return {
        "start": int(old[0] == opening),
        "end": len(old),
        "before_image": spans[0].start if spans else 0,
        "after_image": spans[-1].stop if spans else len(old),
    }[insert.place]


def _row_ids(insert: Insert, row: int) -> tuple[int, ...]:
    if insert.per_row is None:
        return insert.ids
    if row >= len(insert.per_row):
        raise StrategyRefused(f"Insert.per_row has tokens for {len(insert.per_row)} rows, the batch has more.")
    return insert.per_row[row]


def _insert(result: Edited, ids: tuple[int, ...], at: int) -> Edited:
    place = next((index for index, (position, new) in enumerate(result) if position >= at and new is None), len(result))
    neighbour = max(at - 1, 0)
    return result[:place] + [(neighbour, new) for new in ids] + result[place:]


def _drop(result: Edited, spans: list[range], ids: tuple[int, ...]) -> Edited:
    inside = {index: span for span in spans for index in span}
    kept: Edited = []
    for position, new in result:
        if new is not None or position not in inside:
            kept.append((position, new))
        elif position == inside[position].start:
            kept.extend((max(position - 1, 0), one) for one in ids)
    return kept


def _follow(values: Tensor, source: Edited, name: str) -> Tensor:
    """Let a token-aligned input of one row follow the edit: new tokens are text and attended to."""
    moved = values[torch.tensor([position for position, _ in source], device=values.device, dtype=torch.long)]
    fresh = [index for index, (_, new) in enumerate(source) if new is not None]
    if fresh and name != "cross_attention_mask":
        fill = {"input_ids": [new for _, new in source if new is not None], "attention_mask": 1}.get(name, 0)
        moved[fresh] = torch.as_tensor(fill, device=values.device, dtype=values.dtype)
    return moved


def _left_pad(rows: list[Tensor], value: int) -> Tensor:
    length = max(row.shape[0] for row in rows)
    return torch.stack([torch.cat([row.new_full((length - row.shape[0], *row.shape[1:]), value), row]) for row in rows])


def _padding(name: str, config: Any) -> int:
    if name != "input_ids":
        return 0
    pad = getattr(config.get_text_config(decoder=True), "pad_token_id", None)
    return pad if isinstance(pad, int) and pad >= 0 else 0
