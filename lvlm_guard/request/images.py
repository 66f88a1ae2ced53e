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
from lvlm_guard.strategy.branches import FeatureEdit, PictureEdit, PixelEdit

CHANNELS = 3


def generator_for(content: Tensor, seed: int) -> Generator:
    """Return a CPU generator seeded by (`seed`, digest of `content`), so that equal images draw equal numbers."""
    raw = content.detach().float().cpu().contiguous().numpy().tobytes()
    digest = hashlib.blake2b(f"{seed}:".encode() + raw, digest_size=7).digest()
    return Generator().manual_seed(int.from_bytes(digest, "little"))


def edit_pixels(name: str, pixels: Tensor, grid: Tensor | None, config: Any, edit: PixelEdit, seed: int) -> Tensor:
    """Apply `edit` to every image of a batch of preprocessed pixels.

    Args:
        name: Name of the model input, for messages.
        pixels: `[..., channels, height, width]`, edited tile by tile, or flattened patches `[patches, numbers]`.
        grid: `[images, 3]` patches per image in time, height and width; for flattened patches only.
        config: The model's config; tells how many frames a flattened patch holds.
        edit: Elementwise function of one tile and its generator.
        seed: Seed of the generators.

    Returns:
        Edited pixels of the same shape, dtype and device.
    """
    if pixels.ndim > CHANNELS:
        tiles = pixels.flatten(0, -4)
        edited = [tile if _is_padding(tile) else _edit(tile, edit, seed) for tile in tiles]
        return torch.stack(edited).reshape(pixels.shape)
    if grid is None or pixels.ndim != 2:  # noqa: PLR2004 - a matrix of patches
        raise StrategyRefused(f"The layout of {name} {tuple(pixels.shape)} is unknown, so its images cannot be edited.")
    per_image = grid.prod(-1).tolist()
    return torch.cat([_edit_packed(patches, config, edit, seed) for patches in pixels.split(per_image)])


def _edit_packed(patches: Tensor, config: Any, edit: PixelEdit, seed: int) -> Tensor:
    """Edit flattened patches `[patches, channels * frames * patch * patch]`; equal frames get equal edits."""
    layout = anatomy.packed_frames(config, patches.shape[-1])
    if layout is None:
        return _edit(patches, edit, seed)
    frames = patches.reshape(patches.shape[0], *layout, -1)
    still = bool((frames == frames[:, :, :1]).all())
    edited = _edit(frames[:, :, :1] if still else frames, edit, seed)
    return edited.expand_as(frames).reshape(patches.shape)


def _is_padding(tile: Tensor) -> bool:
    """Whether a tile only fills up a batch; models know such tiles by being zero throughout."""
    return not bool(tile.any())


def _called(edit: Callable[[Any, Generator], Any], image: Any, content: Tensor, seed: int) -> Any:
    """Call an edit where its generator draws, whatever torch's default device is."""
    with torch.device("cpu"):
        return edit(image, generator_for(content, seed))


def _edit(tile: Tensor, edit: PixelEdit, seed: int) -> Tensor:
    edited = _called(edit, tile, tile, seed)
    if not isinstance(edited, Tensor) or edited.shape != tile.shape:
        got = tuple(edited.shape) if isinstance(edited, Tensor) else type(edited).__name__
        raise InputError(
            f"An image edit must return a tensor of the shape it got, {tuple(tile.shape)}; it returned {got}."
        )
    return edited.to(tile.device, tile.dtype)


def edit_features(encoded: Mapping[str, Any], edit: FeatureEdit, seed: int) -> dict[str, Any]:
    """Apply `edit` to the encoded features `[tokens, hidden]` of every image; the input is left as it is."""
    copied = copy_encoded(encoded)
    image = copied.get("image")
    for name in anatomy.feature_names(image):
        setattr(image, name, _map_images(getattr(image, name), lambda one: _edit(one, edit, seed)))
    return copied


def _map_images(value: Any, edit: Callable[[Tensor], Tensor]) -> Any:
    """Apply `edit` to each image of a tensor `[images, tokens, hidden]`, a list of images, or a list of such lists."""
    if isinstance(value, Tensor):
        return torch.stack([edit(one) for one in value]) if value.ndim == CHANNELS else edit(value)
    return [_map_images(one, edit) for one in value]


def copy_encoded(encoded: Mapping[str, Any]) -> dict[str, Any]:
    """Copy encoder outputs one level deep: generate replaces their attributes when it expands beams."""
    return {name: None if output is None else type(output)(**dict(output)) for name, output in encoded.items()}


def edit_pictures(pictures: Sequence[Any], edit: PictureEdit, seed: int) -> list[Any]:
    """Apply `edit` to PIL pictures, each with its own generator."""
    return [_called(edit, one, torch.from_numpy(np.asarray(one).copy()), seed) for one in pictures]


def edit_recovered(pixels: Tensor, processor: Any, edit: PictureEdit, seed: int) -> Tensor:
    """Edit pictures recovered from `[..., 3, height, width]` pixels by undoing the normalisation, and normalise again.

    Raises:
        StrategyRefused: The layout of the pixels does not allow it.
        ProcessorNeeded: There is no image processor to tell mean and deviation.
    """
    if pixels.ndim <= CHANNELS or pixels.shape[-3] != CHANNELS:
        raise StrategyRefused(
            f"Pictures cannot be recovered from pixels of shape {tuple(pixels.shape)}. Prepare the inputs with "
            "guard.inputs(images=..., text=...), which remembers the pictures."
        )
    mean, deviation = _normalisation(processor, pixels)

    def through_picture(tile: Tensor) -> Tensor:
        edited = _through_picture((tile.float() * deviation + mean).clamp(0, 1), edit, seed).to(tile.device)
        return ((edited - mean) / deviation).to(tile.dtype)

    edited = [tile if _is_padding(tile) else through_picture(tile) for tile in pixels.flatten(0, -4)]
    return torch.stack(edited).reshape(pixels.shape)


def _through_picture(tile: Tensor, edit: PictureEdit, seed: int) -> Tensor:
    """Edit one tile `[3, height, width]` in 0..1 as a picture."""
    array = (tile.permute(1, 2, 0).cpu() * 255).round().to(torch.uint8).numpy()
    picture = Image.fromarray(array)
    edited = _called(edit, picture, tile, seed).convert("RGB").resize(picture.size)
    return torch.from_numpy(np.asarray(edited).copy()).permute(2, 0, 1).float() / 255


def _normalisation(processor: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    owner = getattr(processor, "image_processor", processor)
    mean, deviation = getattr(owner, "image_mean", None), getattr(owner, "image_std", None)
    if mean is None or deviation is None:
        raise ProcessorNeeded(
            "Editing pictures needs the image processor's mean and deviation: Guard(model, processor)."
        )
    mean, deviation = (
        torch.tensor(one, dtype=torch.float32, device=pixels.device).view(-1, 1, 1) for one in (mean, deviation)
    )
    return mean, deviation
