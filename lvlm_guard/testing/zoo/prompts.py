"""Branches of a prompt written by hand, and prompts of several lengths joined into one batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from lvlm_guard.testing.zoo.building import Specimen, is_strip, join_images
from lvlm_guard.testing.zoo.shrinking import SPECIAL

Inputs = dict[str, Tensor]
EXTRA = (7, 9, 11)
PER_TOKEN = (
    "input_ids",
    "decoder_input_ids",
    "attention_mask",
    "token_type_ids",
    "mm_token_type_ids",
    "moe_mm_token_type_ids",
    "image_embeds_position_mask",
    "cross_attention_mask",
    "image_attention_mask",
    "bbox",
)
"""Inputs with a value for each token of the prompt."""
POSITIONS = 2
"""Leading numbers of a flattened patch that say where it lies."""


def disturbed(pixels: Tensor, _: Any = None) -> Tensor:
    """Return pixels changed element by element, always in the same way."""
    return torch.tanh(3 * pixels) + 0.7


def is_pixels(name: str) -> bool:
    """Return whether an input holds pixels."""
    return "pixel_values" in name or name in {"image_patches", "flattened_patches"}


def striped(pixels: Tensor, _: Any = None) -> Tensor:
    """Return another picture in place of the pixels: the same stripes, whatever part of a picture they are."""
    stripes = torch.tensor([1.5, -1.0, 0.5, -2.0], dtype=pixels.dtype, device=pixels.device)
    return stripes.repeat(pixels.numel() // len(stripes)).reshape(pixels.shape)


def noised(_: Specimen, row: Mapping[str, Tensor]) -> Inputs:
    """Return the row with its pixels disturbed."""
    return _repainted(row, disturbed)


def replaced(_: Specimen, row: Mapping[str, Tensor]) -> Inputs:
    """Return the row with other pictures in place of its own."""
    return _repainted(row, striped)


def _repainted(row: Mapping[str, Tensor], paint: Callable[[Tensor], Tensor]) -> Inputs:
    changed = {name: paint(value) if is_pixels(name) else value for name, value in row.items()}
    if "flattened_patches" in row:
        patches = row["flattened_patches"]
        changed["flattened_patches"] = torch.cat([patches[..., :POSITIONS], paint(patches[..., POSITIONS:])], dim=-1)
    return changed


def without_image(specimen: Specimen, row: Mapping[str, Tensor]) -> Inputs:
    """Return the row without its images: no pixels, no placeholder, no fence."""
    ids = row["input_ids"]
    is_text = torch.tensor([token not in SPECIAL for token in ids[0].tolist()])
    ids = ids[:, is_text][:, : int(is_text.sum()) - specimen.recipe.cut]
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        **({} if specimen.recipe.text_alone else _text_inputs(row)),
        **specimen.per_token(ids, images=0),
        **_unseen(row, ids),
    }


def _unseen(row: Mapping[str, Tensor], ids: Tensor) -> Inputs:
    """Return what a processor writes for a text where the model takes no text alone: an empty picture that no token looks at."""
    if "image_attention_mask" not in row:
        return {}
    pixels = row["pixel_values"]
    looks = torch.zeros(*ids.shape, pixels.shape[1], dtype=torch.long)
    return {"pixel_values": torch.zeros_like(pixels), "image_attention_mask": looks}


def lengthened(specimen: Specimen, row: Mapping[str, Tensor]) -> Inputs:
    """Return the row with more text behind its image, the fence included; at its start where none stands in the prompt."""
    text = specimen.recipe.text
    ids = row[text]
    places = [index + 1 for index, token in enumerate(ids[0].tolist()) if token in SPECIAL]
    after = max(places, default=len(specimen.recipe.opening))
    ids = torch.cat([ids[:, :after], torch.tensor([EXTRA]), ids[:, after:]], dim=1)
    return specimen.complete(ids, {name: value for name, value in row.items() if name not in PER_TOKEN})


def _text_inputs(row: Mapping[str, Tensor]) -> Inputs:
    return {name: value for name, value in row.items() if name.startswith("qformer")}


def joined(rows: Sequence[Mapping[str, Tensor]]) -> Inputs:
    """Return prompts of several lengths as one batch, padded on the left; some may have no image, or several."""
    text = "input_ids" if "input_ids" in rows[0] else "decoder_input_ids"
    longest = max(row[text].shape[1] for row in rows)
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {name: _joined_input(name, [row.get(name) for row in rows], longest) for name in names}


def _joined_input(name: str, values: Sequence[Tensor | None], longest: int) -> Tensor:
    """Return one input of several prompts; of those that have none, nothing, or nothing but zeros where it has axes of rows."""
    present = [value for value in values if value is not None]
    if name in PER_TOKEN:
        return torch.cat(_of_one_size([_padded(_of_row(value, present[0], longest), longest) for value in values]))
    differ = all(value.shape[0] == 1 for value in present) and len({value.shape[1:] for value in present}) > 1
    if differ and not is_strip(name, present[0]):
        return torch.cat(_of_one_size([present[0][:, :0] if value is None else value for value in values]))
    return join_images(name, present)


def _of_row(value: Tensor | None, example: Tensor, longest: int) -> Tensor:
    return example.new_zeros(1, longest, *example.shape[2:]) if value is None else value


def _of_one_size(values: Sequence[Tensor]) -> list[Tensor]:
    """Return values `[1, ...]` with zeros behind them up to the largest on every axis."""
    sizes = [max(sizes) for sizes in zip(*(value.shape for value in values), strict=True)]
    return [
        pad(value, [side for axis in reversed(range(value.ndim)) for side in (0, sizes[axis] - value.shape[axis])])
        for value in values
    ]


def _padded(values: Tensor, length: int) -> Tensor:
    """Return values `[1, tokens, ...]` with zeros in front up to `length`."""
    missing = values.new_zeros(1, length - values.shape[1], *values.shape[2:])
    return torch.cat([missing, values], dim=1)
