"""Branches of a prompt written by hand, and prompts of several lengths joined into one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lvlm_guard.testing.zoo.building import Specimen
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


def noised(_: Specimen, row: Mapping[str, Tensor]) -> Inputs:
    """Return the row with its pixels disturbed."""
    changed = {name: disturbed(value) if is_pixels(name) else value for name, value in row.items()}
    if "flattened_patches" in row:
        changed["flattened_patches"][..., :POSITIONS] = row["flattened_patches"][..., :POSITIONS]
    return changed


def without_image(specimen: Specimen, row: Mapping[str, Tensor]) -> Inputs:
    """Return the row without its image: no pixels, no placeholder, no fence."""
    ids = row["input_ids"]
    is_text = torch.tensor([token not in SPECIAL for token in ids[0].tolist()])
    ids = ids[:, is_text]
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        **_text_inputs(row),
        **specimen.per_token(ids, has_image=False),
    }


def lengthened(specimen: Specimen, row: Mapping[str, Tensor]) -> Inputs:
    """Return the row with more text behind its image, the fence included."""
    ids = row["input_ids"]
    after = max((index + 1 for index, token in enumerate(ids[0].tolist()) if token in SPECIAL), default=0)
    ids = torch.cat([ids[:, :after], torch.tensor([EXTRA]), ids[:, after:]], dim=1)
    image = {name: value for name, value in row.items() if name not in PER_TOKEN}
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        **image,
        **specimen.per_token(ids, has_image=True),
    }


def _text_inputs(row: Mapping[str, Tensor]) -> Inputs:
    return {name: value for name, value in row.items() if name.startswith("qformer")}


def joined(rows: Sequence[Mapping[str, Tensor]]) -> Inputs:
    """Return prompts of several lengths as one batch, padded on the left."""
    text = "input_ids" if "input_ids" in rows[0] else "decoder_input_ids"
    longest = max(row[text].shape[1] for row in rows)
    return {
        name: _joined_input(name, [row[name] for row in rows], longest, "target_sizes" in rows[0]) for name in rows[0]
    }


def _joined_input(name: str, values: Sequence[Tensor], longest: int, strips: bool) -> Tensor:
    """Return one input of several prompts; `strips` are pictures laid out side by side."""
    if name in PER_TOKEN:
        return torch.cat([_padded(value, longest) for value in values])
    if name == "image_token_pooling":  # indices into the patches of all images
        patches = int(values[0].max()) + 1
        return torch.cat([value + patches * place for place, value in enumerate(values)])
    return torch.cat(list(values), dim=-1 if strips and is_pixels(name) else 0)


def _padded(values: Tensor, length: int) -> Tensor:
    """Return values `[1, tokens, ...]` with zeros in front up to `length`."""
    missing = values.new_zeros(1, length - values.shape[1], *values.shape[2:])
    return torch.cat([missing, values], dim=1)
