"""Pictures in arrays and tensors, read as image processors of transformers read them, or refused."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from lvlm_guard.errors import InputError, quote

CHANNELS = (1, 3, 4)
"""Channels that a picture may have: grey, RGB, RGB with transparency."""
TOP = 255
"""The highest level of 8 bits."""
STEP = 257
"""Levels of 16 bits to one of 8 bits."""
AS_BYTES = "Pass levels of 0 to 255 as uint8"
LAYOUTS = {"channels_first": 0, "channels_last": 2}


def is_deep(picture: Image.Image) -> bool:
    """Whether a PIL picture holds numbers beyond 8 bits, which PIL would clip."""
    return picture.mode in ("I", "F") or picture.mode.startswith("I;")


def as_array(values: np.ndarray[Any, Any] | Tensor) -> np.ndarray[Any, Any]:
    """Return an array, or what a tensor holds, as numpy.

    Raises:
        InputError: The tensor has no numbers that can be read.
    """
    if not isinstance(values, Tensor):
        return values
    try:
        tensor = values.detach().cpu()
        return np.asarray(tensor.float() if tensor.is_floating_point() else tensor)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise InputError(f"The picture is a tensor that cannot be read: {quote(error)}.") from None


def read_array(values: np.ndarray[Any, Any], layout: str | None = None) -> Image.Image:
    """Return the picture that an array holds, in PIL's mode L, RGB or RGBA.

    Args:
        values: Levels `[height, width]`, `[height, width, channels]` or `[channels, height, width]`; 1, 3 or 4 channels. Of
            any integer or float type, as long as all are whole numbers of 0 to 255.
        layout: `channels_first` or `channels_last`, where the shape leaves both open.

    Raises:
        InputError: Another shape or type, or levels that a processor would read as something else.
    """
    _check_shape(values)
    levels = _read_levels(values)
    if levels.ndim == 2:  # noqa: PLR2004 - height and width
        return Image.fromarray(levels)
    levels = np.moveaxis(levels, _channel_axis(levels.shape, layout), -1)
    return Image.fromarray(np.ascontiguousarray(levels[..., 0] if levels.shape[-1] == 1 else levels))


def round_levels(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return levels of 16 bits as the nearest of 8 bits, uint8."""
    return ((values.astype(np.uint32) + STEP // 2) // STEP).astype(np.uint8)


def is_share(values: np.ndarray[Any, Any]) -> bool:
    """Whether an array holds floats of 0 to 1, as pictures that are already rescaled do."""
    return values.dtype.kind == "f" and values.size > 0 and bool(((values >= 0) & (values <= 1)).all())


def _check_shape(values: np.ndarray[Any, Any]) -> None:
    if values.dtype.kind not in "uif":
        fix = "multiply it by 255 and cast it to uint8" if values.dtype.kind == "b" else AS_BYTES
        raise InputError(f"A picture holds integers or floats, got an array of {values.dtype}: {fix}.")
    if values.ndim not in (2, 3) or 0 in values.shape:
        raise InputError(
            f"A picture has height, width and 1, 3 or 4 channels, none of them empty, got the shape {values.shape}."
        )


def _read_levels(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return levels as uint8, where nothing is lost."""
    if values.dtype == np.uint8:
        return values.copy()
    low, high = values.min(), values.max()
    if values.dtype.kind == "f" and low >= 0 and 0 < high <= 1:
        raise InputError(
            f"The picture holds floats of {low:.4g} to {high:.4g}, which a processor would divide by 255 once more: pass "
            "(255 * picture).round() as uint8, or do_rescale=False."
        )
    if not (low >= 0 and high <= TOP):  # NaN is neither
        fix = " 16-bit pictures: divide by 257." if high > TOP else ""
        raise InputError(f"The picture holds levels of {low:.4g} to {high:.4g}. {AS_BYTES}.{fix}")
    levels = values.astype(np.uint8)
    if not np.array_equal(levels, values):
        raise InputError(f"The picture holds fractions of levels. {AS_BYTES}: picture.round().astype('uint8').")
    return levels


def _channel_axis(shape: tuple[int, ...], layout: str | None) -> int:
    """Return the axis of the channels."""
    if layout is not None:
        axis = LAYOUTS.get(str(getattr(layout, "value", layout)))
        if axis is None or shape[axis] not in CHANNELS:
            raise InputError(f"input_data_format={quote(layout)} does not fit a picture of the shape {shape}.")
        return axis
    axes = [axis for axis in LAYOUTS.values() if shape[axis] in CHANNELS]
    if len(axes) == 1:
        return axes[0]
    reason = "can be read with the channels first or last" if axes else "has no axis of 1, 3 or 4 channels"
    fix = "pass input_data_format='channels_last' or 'channels_first'" if axes else "pass RGB"
    raise InputError(f"A picture of the shape {shape} {reason}: {fix}.")
