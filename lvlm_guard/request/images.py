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
from lvlm_guard.request.pixel_layouts import PixelLayout, read_layout, split_by_tokens, view_frames
from lvlm_guard.strategy.branches import FeatureEdit, PictureEdit, PictureEdits, PixelEdit

CHANNELS = 3
PARTS, STEP, OFFSET = 16, 0.02, 0.137
"""Into how many parts an image is cut for its digest, and in what steps their means count; no flat part lies at the edge of one."""


def generator_for(content: Tensor | Sequence[Tensor], seed: int) -> Generator:
    """Return a CPU generator seeded by (`seed`, digest of `content`), so that equal images draw equal numbers.

    Whole numbers count exactly. Floats count by the means of their parts, coarsely: the digest is the same after a cast to bfloat16,
    and, but for a chance of about one in ten thousand, with another processor's rounding. Images that differ in less may draw the same
    numbers.
    """
    digest = hashlib.blake2b(f"{seed}:".encode(), digest_size=7)
    for piece in [content] if isinstance(content, Tensor) else content:
        summary = _summarise_floats(piece) if piece.is_floating_point() else piece
        digest.update(str(tuple(piece.shape)).encode())
        digest.update(summary.detach().cpu().contiguous().numpy().tobytes())
    return Generator().manual_seed(int.from_bytes(digest.digest(), "little"))


def _summarise_floats(values: Tensor) -> Tensor:
    """Return the mean of each part of an image in steps, int64; sums of bfloat16 are exact in fp64, so their order is no matter."""
    parts = values.detach().to(torch.bfloat16).cpu().double().nan_to_num().flatten().tensor_split(PARTS)
    means = torch.stack([part.mean() if part.numel() else part.new_zeros(()) for part in parts])
    return means.div(STEP).add(OFFSET).round().long()


def edit_pixels(name: str, pixels: Tensor, grid: Tensor | None, config: Config, edit: PixelEdit, seed: int) -> Tensor:
    """Apply `edit` to every image of one request's preprocessed pixels, or of a batch whose layout the shape alone tells.

    Args:
        name: Name of the model input, for messages.
        pixels: As `read_layout` takes them.
        grid: `[images, 3]` patches per image in time, height and width; for patches only.
        config: The model's config, which says how many frames a flattened patch holds.
        edit: Elementwise function of one tile and its generator.
        seed: Seed of the generators.

    Returns:
        Edited pixels of the same shape, dtype and device.
    """
    inputs = {} if grid is None else {("video_grid_thw" if "video" in name else anatomy.PACKED_GRID): grid}
    return edit_images(pixels, read_layout(name, pixels, inputs), config, edit, seed)


def edit_images(pixels: Tensor, layout: PixelLayout, config: Config, edit: PixelEdit, seed: int) -> Tensor:
    """Apply `edit` to every image of a tensor of pixels.

    An image has one generator for all its tiles or patches, and the frames of a still image get equal edits. Tiles that only
    fill up a batch stay as they are.
    """
    edited = pixels.clone()
    for image in layout.images:
        pieces = [index for index in image if not _is_padding(pixels[index])]
        views = [_view_piece(pixels[index], config, packed=layout.packed) for index in pieces]
        generator = generator_for(views, seed)
        for index, view in zip(pieces, views, strict=True):
            result = _edit_tile(view, edit, generator)
            edited[index] = _undo_view(result, pixels[index], config, packed=layout.packed)
    return edited


def _view_piece(piece: Tensor, config: Config, *, packed: bool) -> Tensor:
    """Return what an edit sees of a piece: a tile, or patches by channels and frames, one frame where all are equal."""
    if not packed:
        return piece
    frames, still = view_frames(piece, config)
    return frames[:, :, :1] if still else frames


def _undo_view(edited: Tensor, piece: Tensor, config: Config, *, packed: bool) -> Tensor:
    """Bring what an edit returned into the shape of the piece."""
    if not packed:
        return edited
    return edited.expand_as(view_frames(piece, config)[0]).reshape(piece.shape)


def _is_padding(tile: Tensor) -> bool:
    """Whether a tile only fills up a batch; such tiles are zero throughout."""
    return not bool(tile.any())


def _apply_edit(edit: Callable[[Any, Generator], Any], image: Any, generator: Generator) -> Any:
    """Call an edit on the device its generator draws on, whatever torch's default device is."""
    with torch.device("cpu"):
        return edit(image, generator)


def _edit_tile(tile: Tensor, edit: PixelEdit, generator: Generator) -> Tensor:
    edited = _apply_edit(edit, tile, generator)
    if not isinstance(edited, Tensor) or edited.shape != tile.shape:
        result = tuple(edited.shape) if isinstance(edited, Tensor) else type(edited).__name__
        raise InputError(
            f"An image edit must return a tensor of the shape it got, {tuple(tile.shape)}; it returned {result}."
        )
    return edited.to(tile.device, tile.dtype)


def edit_features(
    encoded: Mapping[str, Any], edit: FeatureEdit, seed: int, tokens: Sequence[int] = (), rows: int = 1
) -> dict[str, Any]:
    """Apply `edit` to the encoded features `[tokens, hidden]` of every image; the input is left as it is.

    Args:
        encoded: What the image encoder returned.
        edit: Function of the features of one image and its generator.
        seed: Seed of the generators.
        tokens: Placeholders of each image, by which features of a whole batch `[tokens, hidden]` are split.
        rows: Requests in the batch.

    Raises:
        StrategyRefused: Nothing tells which features belong to which image.
    """
    copied = copy_encoded(encoded)
    output = copied.get("image")

    def edit_image(image: Tensor) -> Tensor:
        return _edit_tile(image, edit, generator_for(image, seed))

    def edit_whole(features: Tensor) -> Tensor:
        parts = features.split(split_by_tokens("The image features", features, tokens, rows))
        return torch.cat([edit_image(part) for part in parts])

    for name in anatomy.feature_names(output):
        value = getattr(output, name)
        edited = edit_whole(value) if _is_whole(value) else _map_images(value, edit_image)
        if name == "deepstack_features" and not isinstance(value, Tensor):
            edited = [edit_whole(layer) if _is_whole(layer) else _map_images(layer, edit_image) for layer in value]
        setattr(output, name, edited)
    return copied


def _is_whole(value: Any) -> bool:
    """Whether features are those of all images in one matrix."""
    return isinstance(value, Tensor) and value.ndim == 2  # noqa: PLR2004 - tokens and hidden size


def _map_images(value: Any, edit: Callable[[Tensor], Tensor]) -> Any:
    """Apply `edit` to each image of a tensor `[images, tokens, hidden]`, a list of images, or a list of such lists."""
    if isinstance(value, Tensor):
        return torch.stack([edit(image) for image in value]) if value.ndim == CHANNELS else edit(value)
    return [_map_images(images, edit) for images in value]


def copy_encoded(encoded: Mapping[str, Any]) -> dict[str, Any]:
    """Copy encoder outputs one level deep: generate replaces their attributes when it expands beams."""
    return {name: None if output is None else type(output)(**dict(output)) for name, output in encoded.items()}


def edit_pictures(pictures: Sequence[Any], edit: PictureEdits, seed: int) -> list[Any]:
    """Apply `edit`, or the edit of each, to copies of PIL pictures, each with its own generator.

    Raises:
        InputError: The edit returns something else, or there is not one for each picture.
    """
    edits = edit if isinstance(edit, tuple) else (edit,) * len(pictures)
    if len(edits) != len(pictures):
        raise InputError(
            f"There are {len(edits)} edits for {len(pictures)} pictures: give one edit, or one for each picture."
        )
    return [
        _edit_picture(each, picture.copy(), generator_for(torch.from_numpy(np.asarray(picture).copy()), seed))
        for each, picture in zip(edits, pictures, strict=True)
    ]


def _edit_picture(edit: PictureEdit, picture: Image.Image, generator: Generator) -> Image.Image:
    edited = _apply_edit(edit, picture, generator)
    if not isinstance(edited, Image.Image):
        raise InputError(f"An edit of pictures must return a PIL picture; it returned {type(edited).__name__}.")
    return edited


def edit_recovered(pixels: Tensor, layout: PixelLayout, processor: Processor, edit: PictureEdit, seed: int) -> Tensor:
    """Edit pictures recovered from `[..., 3, height, width]` pixels by undoing the normalisation, and normalise again.

    The tiles of an image share a generator, as those of `edit_images` do.

    Raises:
        StrategyRefused: The layout of the pixels does not allow it.
        ProcessorNeeded: There is no image processor, so mean and deviation are unknown.
    """
    if layout.packed or pixels.shape[-3] != CHANNELS:
        raise StrategyRefused(
            f"Pictures cannot be recovered from pixels of shape {tuple(pixels.shape)}. Prepare the inputs with "
            "guard.inputs(images=..., text=...), which remembers the pictures."
        )
    mean, deviation = _read_normalisation(processor, pixels)
    result = pixels.clone()
    for image in layout.images:
        pieces = [index for index in image if not _is_padding(pixels[index])]
        levels = [(pixels[index].float() * deviation + mean).clamp(0, 1) for index in pieces]
        generator = generator_for(levels, seed)
        for index, level in zip(pieces, levels, strict=True):
            edited = _edit_as_picture(level, edit, generator).to(pixels.device)
            result[index] = ((edited - mean) / deviation).to(pixels.dtype)
    return result


def _edit_as_picture(tile: Tensor, edit: PictureEdit, generator: Generator) -> Tensor:
    """Edit one tile `[3, height, width]` in 0..1 as a picture."""
    array = (tile.permute(1, 2, 0).cpu() * 255).round().to(torch.uint8).numpy()
    picture = Image.fromarray(array)
    edited = _edit_picture(edit, picture, generator).convert("RGB").resize(picture.size)
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
