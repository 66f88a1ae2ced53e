"""Edits of images: per-image generators, pixel tiles, pictures, and encoded features."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor

from lvlm_guard import anatomy
from lvlm_guard.errors import InputError, ProcessorNeeded, StrategyRefused
from lvlm_guard.protocols import Config, Processor
from lvlm_guard.strategy.branches import FeatureEdit, PictureEdit, PixelEdit

CHANNELS = 3


def generator_for(content: Tensor, seed: int) -> Generator:
    """Return a CPU generator seeded by (`seed`, digest of `content`), so that equal images draw equal numbers."""
    raw = content.detach().float().cpu().contiguous().numpy().tobytes()
    digest = hashlib.blake2b(f"{seed}:".encode() + raw, digest_size=7).digest()
    return Generator().manual_seed(int.from_bytes(digest, "little"))


def edit_pixels(name: str, pixels: Tensor, grid: Tensor | None, config: Config, edit: PixelEdit, seed: int) -> Tensor:
    """Apply `edit` to every image of a batch of preprocessed pixels.

    Args:
        name: Name of the model input, for messages.
        pixels: `[..., channels, height, width]`, edited tile by tile, or flattened patches `[patches, numbers]`.
        grid: `[images, 3]` patches per image in time, height and width; for flattened patches only.
        config: The model's config, which says how many frames a flattened patch holds.
        edit: Elementwise function of one tile and its generator.
        seed: Seed of the generators.

    Returns:
        Edited pixels of the same shape, dtype and device.
    """
    if pixels.ndim > CHANNELS:
        tiles = pixels.flatten(0, -4)
        edited = [tile if _is_padding(tile) else _edit_tile(tile, edit, seed) for tile in tiles]
        return torch.stack(edited).reshape(pixels.shape)
    if grid is None or pixels.ndim != 2:  # noqa: PLR2004 - a matrix of patches
        raise StrategyRefused(f"The layout of {name} {tuple(pixels.shape)} is unknown, so its images cannot be edited.")
    per_image = grid.prod(-1).tolist()
    return torch.cat([_edit_patches(patches, config, edit, seed) for patches in pixels.split(per_image)])


def _edit_patches(patches: Tensor, config: Config, edit: PixelEdit, seed: int) -> Tensor:
    """Edit flattened patches `[patches, channels * frames * patch * patch]`; equal frames get equal edits."""
    layout = anatomy.packed_frames(config, patches.shape[-1])
    if layout is None:
        return _edit_tile(patches, edit, seed)
    frames = patches.reshape(patches.shape[0], *layout, -1)
    still = bool((frames == frames[:, :, :1]).all())
    edited = _edit_tile(frames[:, :, :1] if still else frames, edit, seed)
    return edited.expand_as(frames).reshape(patches.shape)


def _is_padding(tile: Tensor) -> bool:
    """Whether a tile only fills up a batch; such tiles are zero throughout."""
    return not bool(tile.any())


def _apply_edit(edit: Callable[[Any, Generator], Any], image: Any, content: Tensor, seed: int) -> Any:
    """Call an edit on the device its generator draws on, whatever torch's default device is."""
    with torch.device("cpu"):
        return edit(image, generator_for(content, seed))


def _edit_tile(tile: Tensor, edit: PixelEdit, seed: int) -> Tensor:
    edited = _apply_edit(edit, tile, tile, seed)
    if not isinstance(edited, Tensor) or edited.shape != tile.shape:
        result = tuple(edited.shape) if isinstance(edited, Tensor) else type(edited).__name__
        raise InputError(
            f"An image edit must return a tensor of the shape it got, {tuple(tile.shape)}; it returned {result}."
        )
    return edited.to(tile.device, tile.dtype)


def edit_features(encoded: Mapping[str, Any], edit: FeatureEdit, seed: int) -> dict[str, Any]:
    """Apply `edit` to the encoded features `[tokens, hidden]` of every image; the input is left as it is."""
    copied = copy_encoded(encoded)
    output = copied.get("image")
    for name in anatomy.feature_names(output):
        setattr(output, name, _map_images(getattr(output, name), lambda image: _edit_tile(image, edit, seed)))
    return copied


def _map_images(value: Any, edit: Callable[[Tensor], Tensor]) -> Any:
    """Apply `edit` to each image of a tensor `[images, tokens, hidden]`, a list of images, or a list of such lists."""
    if isinstance(value, Tensor):
        return torch.stack([edit(image) for image in value]) if value.ndim == CHANNELS else edit(value)
    return [_map_images(images, edit) for images in value]


def copy_encoded(encoded: Mapping[str, Any]) -> dict[str, Any]:
    """Copy encoder outputs one level deep: generate replaces their attributes when it expands beams."""
    return {name: None if output is None else type(output)(**dict(output)) for name, output in encoded.items()}


def edit_pictures(pictures: Sequence[Any], edit: PictureEdit, seed: int) -> list[Any]:
    """Apply `edit` to copies of PIL pictures, each with its own generator.

    Raises:
        InputError: The edit returns something else.
    """
    return [
        _edit_picture(edit, picture.copy(), torch.from_numpy(np.asarray(picture).copy()), seed) for picture in pictures
    ]


def _edit_picture(edit: PictureEdit, picture: Image.Image, content: Tensor, seed: int) -> Image.Image:
    edited = _apply_edit(edit, picture, content, seed)
    if not isinstance(edited, Image.Image):
        raise InputError(f"An edit of pictures must return a PIL picture; it returned {type(edited).__name__}.")
    return edited


def edit_recovered(pixels: Tensor, processor: Processor, edit: PictureEdit, seed: int) -> Tensor:
    """Edit pictures recovered from `[..., 3, height, width]` pixels by undoing the normalisation, and normalise again.

    Raises:
        StrategyRefused: The layout of the pixels does not allow it.
        ProcessorNeeded: There is no image processor, so mean and deviation are unknown.
    """
    if pixels.ndim <= CHANNELS or pixels.shape[-3] != CHANNELS:
        raise StrategyRefused(
            f"Pictures cannot be recovered from pixels of shape {tuple(pixels.shape)}. Prepare the inputs with "
            "guard.inputs(images=..., text=...), which remembers the pictures."
        )
    mean, deviation = _read_normalisation(processor, pixels)

    def edit_tile(tile: Tensor) -> Tensor:
        edited = _edit_as_picture((tile.float() * deviation + mean).clamp(0, 1), edit, seed).to(tile.device)
        return ((edited - mean) / deviation).to(tile.dtype)

    edited = [tile if _is_padding(tile) else edit_tile(tile) for tile in pixels.flatten(0, -4)]
    return torch.stack(edited).reshape(pixels.shape)


def _edit_as_picture(tile: Tensor, edit: PictureEdit, seed: int) -> Tensor:
    """Edit one tile `[3, height, width]` in 0..1 as a picture."""
    array = (tile.permute(1, 2, 0).cpu() * 255).round().to(torch.uint8).numpy()
    picture = Image.fromarray(array)
    edited = _edit_picture(edit, picture, tile, seed).convert("RGB").resize(picture.size)
    return torch.from_numpy(np.asarray(edited).copy()).permute(2, 0, 1).float() / 255


def _read_normalisation(processor: Processor, pixels: Tensor) -> tuple[Tensor, Tensor]:
    image_processor = getattr(processor, "image_processor", processor)
    mean, deviation = getattr(image_processor, "image_mean", None), getattr(image_processor, "image_std", None)
    if mean is None or deviation is None:
        raise ProcessorNeeded(
            "Editing pictures needs the image processor's mean and deviation: Guard(model, processor)."
        )
    mean, deviation = (
        torch.tensor(values, dtype=torch.float32, device=pixels.device).view(-1, 1, 1) for values in (mean, deviation)
    )
    return mean, deviation
