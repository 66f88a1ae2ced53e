"""Where things are in any model, found by looking: image placeholders, the tokens that fence them, pixels, rope state."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

FENCES = (
    "vision_start_token_id",
    "vision_end_token_id",
    "boi_token_id",
    "boi_token_index",
    "eoi_token_id",
    "eoi_token_index",
    "image_start_token_id",
    "image_end_token_id",
    "start_image_token_id",
    "end_image_token_id",
    "fake_image_token_id",
    "global_image_token_id",
)
PACKED_GRID = "image_grid_thw"


def image_token_id(config: Any) -> int | None:
    """Id of the image placeholder, or None where the model has none."""
    for name in ("image_token_id", "image_token_index"):
        value = getattr(config, name, None)
        if isinstance(value, int):
            return value
    return None


def image_mask(config: Any, input_ids: Tensor) -> Tensor:
    """True at image placeholders; bool, shape of `input_ids`."""
    token = image_token_id(config)
    return torch.zeros_like(input_ids, dtype=torch.bool) if token is None else input_ids == token


def fence_ids(config: Any, processor: Any = None) -> frozenset[int]:
    """Ids of the tokens that open and close an image in the prompt, as far as config and processor name them."""
    found = {getattr(owner, name, None) for owner in (config, processor) if owner is not None for name in FENCES}
    return frozenset(value for value in found if isinstance(value, int))


def is_pixels(name: str, value: Any) -> bool:
    """Whether a model input holds pixels: a float tensor called after them."""
    named = "pixel_values" in name or name == "image_patches"
    return named and isinstance(value, Tensor) and value.is_floating_point()


def is_image_input(name: str) -> bool:
    """Whether a model input exists only because there is an image."""
    marks = ("pixel", "image", "aspect_ratio", "cross_attention_mask", "vision", "num_crops", "mm_encoder_outputs")
    return any(mark in name for mark in marks)


def packed_frames(config: Any, width: int) -> tuple[int, int] | None:
    """Channels and temporal frames inside one flattened patch of `width` numbers, or None when it is not divisible."""
    vision = getattr(config, "vision_config", None)
    frames = getattr(vision, "temporal_patch_size", None) or 1
    channels = getattr(vision, "in_channels", None) or getattr(vision, "in_chans", None) or 3
    return (channels, frames) if width % (channels * frames) == 0 else None


def rope_owners(module: nn.Module) -> list[nn.Module]:
    """Submodules that remember rope deltas between calls, and so must be put back after every branch."""
    return [part for part in module.modules() if hasattr(part, "rope_deltas")]


def dynamically_quantised(module: nn.Module) -> bool:
    """Whether a layer quantises activations per batch, which makes rows depend on the batch they are in."""
    return any("quantized.dynamic" in type(part).__module__ for part in module.modules())


def maximum_length(config: Any) -> int | None:
    """Positions the decoder was built for, or None when the config does not say."""
    text = config.get_text_config(decoder=True)
    value = getattr(text, "max_position_embeddings", None)
    return value if isinstance(value, int) else None


def feature_names(encoded: Any) -> list[str]:
    """Attributes of an image encoder output that hold per-image features the decoder reads."""
    return [name for name in ("pooler_output", "deepstack_features") if getattr(encoded, name, None) is not None]
