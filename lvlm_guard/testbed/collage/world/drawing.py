"""Draw a collage: a soft backdrop, pictures of things pasted on it, whole or tinted, and the noise of a camera."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 224
"""Pixels of a side of a collage: seven by seven cells of 32 for a convolutional encoder."""

Pixels = NDArray[np.float32]

TINTS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.10, 0.12),
    "yellow": (0.96, 0.83, 0.10),
    "green": (0.10, 0.62, 0.22),
    "blue": (0.12, 0.30, 0.90),
    "purple": (0.55, 0.15, 0.75),
    "brown": (0.45, 0.26, 0.12),
    "black": (0.07, 0.07, 0.08),
    "white": (0.90, 0.90, 0.90),
}
"""The middle tone of each colour, from 0 to 1."""

_LUMA = np.asarray([0.299, 0.587, 0.114], dtype=np.float32)
_DARKEST, _LIGHTEST = 0.45, 0.5
"""How dark the shadows of a tinted picture get, as a share of the middle tone, and how far its lights go towards white."""
_SOLID = 0.5
"""Alpha from which a pixel counts for the range of tones."""


@dataclass(frozen=True)
class Backdrop:
    """What is behind the things, and how noisy the picture is.

    Args:
        top: Colour at the upper edge: three numbers from 0 to 1.
        bottom: Colour at the lower edge.
        horizon: Where the ground begins, as a share of the height; 0 where top fades into bottom.
        clouds: Strength of soft spots, where the pixel range is 0 to 1.
        noise: Standard deviation of the pixel noise.
        seed: Draws spots and noise.
    """

    top: tuple[float, float, float]
    bottom: tuple[float, float, float]
    horizon: float
    clouds: float
    noise: float
    seed: tuple[int, ...]


def paint(backdrop: Backdrop) -> Pixels:
    """Return a backdrop without its noise: float32, `[224, 224, 3]`, from 0 to 1."""
    height = np.linspace(0, 1, SIDE, dtype=np.float32)[:, None, None]
    share = height if not backdrop.horizon else (height > backdrop.horizon).astype(np.float32)
    top, bottom = (np.asarray(colour, dtype=np.float32) for colour in (backdrop.top, backdrop.bottom))
    canvas = np.broadcast_to(top + (bottom - top) * share, (SIDE, SIDE, 3)).copy()
    canvas += np.float32(backdrop.clouds) * _spots(np.random.default_rng((*backdrop.seed, 0)))
    return canvas.clip(0, 1)


def _spots(rng: np.random.Generator) -> Pixels:
    coarse = (rng.random((7, 7)) * 255).astype(np.uint8)
    soft = Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return np.asarray(soft, dtype=np.float32)[..., None] / 255 - np.float32(0.5)


def add_noise(canvas: Pixels, backdrop: Backdrop) -> Pixels:
    """Return the picture with its pixel noise."""
    rng = np.random.default_rng((*backdrop.seed, 1))
    return canvas + np.float32(backdrop.noise) * rng.standard_normal(canvas.shape, dtype=np.float32)


def tint(cut: Pixels, colour: str) -> Pixels:
    """Return a cut-out in one colour, its light and shade kept.

    Args:
        cut: float32, `[height, width, 4]`, from 0 to 1; the last channel is the opacity.
        colour: One of `TINTS`.
    """
    luma = cut[..., :3] @ _LUMA
    solid = luma[cut[..., 3] > _SOLID]
    low, high = np.quantile(solid, (0.05, 0.95)) if solid.size else (0.0, 1.0)
    tone = ((luma - low) / max(float(high - low), 0.05)).clip(0, 1)[..., None].astype(np.float32)
    middle = np.asarray(TINTS[colour], dtype=np.float32)
    dark, light = middle * np.float32(_DARKEST), middle + (1 - middle) * np.float32(_LIGHTEST)
    if colour == "black":
        light = middle + np.float32(0.25)
    if colour == "white":
        dark, light = middle * np.float32(0.72), np.ones(3, dtype=np.float32)
    colours = np.where(tone < 0.5, dark + (middle - dark) * 2 * tone, middle + (light - middle) * (2 * tone - 1))
    return np.concatenate([colours, cut[..., 3:]], -1).astype(np.float32)


def paste(canvas: Pixels, cut: Pixels, left: int, top: int, opacity: float) -> None:
    """Lay a cut-out over the canvas, in place."""
    height, width = cut.shape[:2]
    alpha = cut[..., 3:] * np.float32(opacity)
    area = canvas[top : top + height, left : left + width]
    area += alpha * (cut[..., :3] - area)


def finish(canvas: Pixels) -> Image.Image:
    """Return the canvas as a picture: RGB, 224x224."""
    return Image.fromarray((canvas.clip(0, 1) * 255 + 0.5).astype(np.uint8))
