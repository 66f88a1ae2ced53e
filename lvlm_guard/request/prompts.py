"""Token edits of prompts: insertion, replacement and removal of images, row by row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lvlm_guard import anatomy
from lvlm_guard.errors import ModeRefused, StrategyRefused
from lvlm_guard.protocols import Config
from lvlm_guard.request.expansions import learn_expansions
from lvlm_guard.request.fences import find_fences
from lvlm_guard.request.image_spans import PromptImages, find_images, merge_touching
from lvlm_guard.request.requests import Request
from lvlm_guard.request.video_spans import join_frames
from lvlm_guard.strategy.branches import Branch, Exchange, Insert, Replace

TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids", "moe_mm_token_type_ids")
LOOKS = ("cross_attention_mask", "image_attention_mask")
"""Inputs `[rows, length, images, ...]` that say which image each token looks at; a new token looks where its neighbour does."""
PER_TOKEN = (*TOKEN_TYPES, *LOOKS, anatomy.IMAGE_PLACES, "bbox")
"""Inputs beside ids and mask that have a value for each token of the prompt; 0 of a text token that comes new."""
OPENINGS = {
    "input_ids": ("bos_token_id",),
    "decoder_input_ids": ("bos_token_id", "decoder_start_token_id"),
}
"""Fields of configs that name a token which a prompt may begin with, by the input that holds it."""
IMAGE = -1
"""Stands for every token that the inputs say an image stands at."""
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
            f"Branch {branch.key!r} changes the prompt, which position_ids and inputs_embeds cannot follow: drop them, and pass the "
            "processor's full output, generate(**inputs)."
        )
    spans = find_spans(request)
    shared: list[dict[int, int]] = [{} for _ in spans]
    if branch.drops_image:
        _check_spans(request, branch, spans)
        shared = _find_shared(request, branch)
    aligned = {"input_ids": request.input_ids, "attention_mask": request.attention_mask}
    if request.text_name == "input_ids":
        aligned |= {name: inputs[name] for name in PER_TOKEN if name in inputs}
    rows: dict[str, list[Tensor]] = {name: [] for name in aligned}
    for row in range(request.input_ids.shape[0]):
        real = request.attention_mask[row].bool()
        ids = _exchange(request.input_ids[row][real], branch, spans[row])
        edited = _share_tokens(_edit_row(ids.tolist(), request, branch, spans[row], row), shared[row])
        for name, values in aligned.items():
            before = ids if name == "input_ids" else values[row][real]
            rows[name].append(_apply_edit(before, edited, name))
    padded = {name: _pad_left(values, _padding_value(name, request.config)) for name, values in rows.items()}
    named = {"input_ids": request.text_name, "attention_mask": request.mask_name}
    return {named.get(name, name): values for name, values in padded.items()}


def find_spans(request: Request) -> list[list[range]]:
    """Return the span of each image in each prompt without its padding, fences included; spans of videos too."""
    spans = find_spans_of(request, request.placeholder, request.image_count)
    if not request.has_video:
        return spans
    videos = find_video_spans(request) or find_spans_of(request, request.video_placeholder)
    if request.video_placeholder == request.placeholder:
        return videos
    return [sorted(row + more, key=lambda span: span.start) for row, more in zip(spans, videos, strict=True)]


def find_video_spans(request: Request) -> list[list[range]] | None:
    """Return the span of each video in each prompt without its padding; None where nothing tells what was written for it."""
    prompts = [row[mask].tolist() for row, mask in zip(request.input_ids, request.attention_mask.bool(), strict=True)]
    spans = find_spans_of(request, request.video_placeholder)
    return join_frames(prompts, spans, request.frame_counts, find_fences(request.config, request.processor))


def find_spans_of(request: Request, placeholder: int | None, count: int | None = None) -> list[list[range]]:
    """Return the span of each image, or of each video, in each prompt without its padding.

    Args:
        request: The request.
        placeholder: Id that stands for parts of one.
        count: How many there are in the batch, where that is known: one in each row have no text between their parts, and parts
            that touch are one where there are more of them.
    """
    rows = [images.spans for images in _find_images(request, placeholder, count)]
    return rows if count is None or sum(map(len, rows)) <= count else [merge_touching(row) for row in rows]


def _find_images(request: Request, placeholder: int | None, count: int | None = None) -> list[PromptImages]:
    """Return where images, or videos, stand in each prompt without its padding; the arguments are those of `find_spans_of`."""
    fences = find_fences(request.config, request.processor)
    expansions = learn_expansions(request.processor, placeholder, fences) if placeholder == request.placeholder else ()
    ids = request.input_ids
    if request.places is not None and placeholder == request.placeholder:
        ids, placeholder = ids.masked_fill(request.places != 0, IMAGE), IMAGE
    prompts = [row[mask].tolist() for row, mask in zip(ids, request.attention_mask.bool(), strict=True)]
    one_image = count == len(prompts) and all(placeholder in row for row in prompts)
    return [find_images(row, {placeholder}, fences, expansions, one_image=one_image) for row in prompts]


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


def _find_shared(request: Request, branch: Branch) -> list[dict[int, int]]:
    """Return the user's part of tokens that hold some of what was written for an image too, by their index in each prompt.

    Raises:
        StrategyRefused: It is no token, or words that the processor writes for images stand in a prompt in another way.
    """
    fences, images = (
        find_fences(request.config, request.processor),
        _find_images(request, request.placeholder, request.image_count),
    )
    if any(each.unclear for each in images):
        raise StrategyRefused(
            f"Branch {branch.key!r} drops images, and a prompt holds words that {type(request.processor).__name__} writes for an "
            "image, but not as it writes them, so nothing tells them from the user's: pass on what the processor makes."
        )
    rows = [{index: fences.find_token(text) for index, text in each.shared.items()} for each in images]
    if any(token is None for row in rows for token in row.values()):
        raise StrategyRefused(
            f"Branch {branch.key!r} drops images, but a token of the prompt holds some of the user's text and some of what was "
            "written for an image, and the user's part of it is no token: put a space or a line between the image and the text."
        )
    return [{index: token for index, token in row.items() if token is not None} for row in rows]


def _share_tokens(edited: EditedRow, shared: Mapping[int, int]) -> EditedRow:
    """Return an edited prompt with the user's part in place of tokens that hold some of an image too."""
    return [(position, shared.get(position) if new is None else new) for position, new in edited]


def count_placeholders(request: Request, *, of_videos: bool = False) -> list[list[int]]:
    """Return how many placeholders each image of each row has, in order; or each video, or what stands apart of one."""
    places = request.video_mask if of_videos else request.image_mask
    rows = zip(find_spans(request), places, request.attention_mask.bool(), strict=True)
    counts = [[int(image[mask][span.start : span.stop].sum()) for span in spans] for spans, image, mask in rows]
    return [[count for count in row if count] for row in counts]


def _exchange(ids: Tensor, branch: Branch, spans: list[range]) -> Tensor:
    """Return the ids of a prompt without its padding, with tokens exchanged outside of images."""
    partners: dict[int, int] = {}
    for edit in branch.tokens:
        partners |= edit.partners if isinstance(edit, Exchange) else {}
    of_images = {position for span in spans for position in span}
    changed = [
        token if position in of_images else partners.get(token, token) for position, token in enumerate(ids.tolist())
    ]
    return ids.new_tensor(changed)


def _edit_row(old: list[int], request: Request, branch: Branch, spans: list[range], row: int) -> EditedRow:
    """Edit the prompt of one row."""
    at_image = any(isinstance(edit, Insert) and "image" in edit.place for edit in branch.tokens)
    if not spans and (branch.needs_image or at_image) and not request.stands_beside:
        remedy = (
            " Guard(..., without_image='plain') runs such rows as plain generate does."
            if len(request.input_ids) > 1
            else ""
        )
        raise StrategyRefused(
            f"Branch {branch.key!r} edits the prompt around the image, but row {row} has no image placeholder.{remedy}"
        )
    edited: EditedRow = [(index, None) for index in range(len(old))]
    for edit in branch.tokens:
        if isinstance(edit, Insert):
            edited = _insert(edited, _ids_of_row(edit, row), _find_place(edit, old, spans, request))
    if branch.drops_image:
        replacement = next((edit.ids for edit in branch.tokens if isinstance(edit, Replace)), ())
        edited = _drop_images(edited, spans, replacement)
    return edited


def _find_place(insert: Insert, old: list[int], spans: list[range], request: Request) -> int:
    """Return the index in the old prompt before which the new tokens go."""
    text = request.config.get_text_config(decoder=True)
    openings = {getattr(text, name, None) for name in OPENINGS[request.text_name]}
    openings |= {getattr(request.config, name, None) for name in OPENINGS[request.text_name][1:]}
    start = int(bool(old) and old[0] in openings)
    return {
        "start": start,
        "end": len(old),
        "before_image": spans[0].start if spans else start,  # an image beside the prompt comes before its text
        "after_image": spans[-1].stop if spans else start,
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
    if inserted and name not in LOOKS:
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
