"""One reader of pictures for every door: the pixels that the model's own processor would see, or an error."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from transformers import image_transforms

from lvlm_guard.errors import GuardWarning, InputError, quote
from lvlm_guard.request import picture_arrays
from lvlm_guard.request.picture_sources import BROKEN, LOCAL_ONLY, PictureSources, open_text
from lvlm_guard.user_warnings import warn_user

LARGEST_RATIO = 200
"""Longer side over shorter side of a picture, at most; processors of transformers refuse beyond it, or run out of memory."""
ORIENTATION = 0x0112
"""The EXIF tag that says how a camera was held."""
_NUMPY = (
    {"return_numpy": True} if "return_numpy" in inspect.signature(image_transforms.convert_to_rgb).parameters else {}
)
_HINTS = (
    ((bytes, bytearray, memoryview), "the content of a file: PIL.Image.open(io.BytesIO(content))"),
    (Mapping, "a dict: pass the picture itself, or the dict as an item of a message's content"),
    ((list, tuple), "a list: pass a flat list of pictures"),
)


@dataclass(frozen=True)
class PictureReader:
    """Reads pictures as one image processor does.

    Args:
        sources: Where pictures that a text names may come from.
        processor: The processor, or its image processor; None for a picture that any may take.
        rescales: Whether the processor divides levels by 255, which arrays of floats must not be.
        layout: Where the channels of arrays are, if the shape does not say.
    """

    sources: PictureSources = LOCAL_ONLY
    processor: Any = None
    rescales: bool = True
    layout: str | None = None

    def read(self, value: Any) -> Any:
        """Return a copy of a picture as PIL RGB; of floats in 0 to 1, where the processor does not rescale, as they are.

        Args:
            value: A PIL picture, an array or tensor, a path, URL, data URI or base64.

        Raises:
            InputError: It cannot be read, or only as something it is not.
        """
        if isinstance(value, (np.ndarray, Tensor)):
            picture = self._read_array(picture_arrays.as_array(value))
        elif isinstance(value, (str, os.PathLike)):
            picture = self._open(value)
        elif isinstance(value, Image.Image):
            picture = self._read_pil(value)
        else:
            raise InputError(_describe_wrong_kind(value))
        if isinstance(picture, Image.Image):
            _check_size(picture.size)
        return picture

    def _open(self, value: str | os.PathLike[str]) -> Image.Image:
        name = os.fspath(value)
        if not isinstance(name, str):
            raise InputError(f"A path of a picture is text, got {quote(name)}.")
        return open_text(name, self.sources)

    def _read_array(self, values: np.ndarray[Any, Any]) -> Any:
        if not self.rescales and picture_arrays.is_share(values):
            return values.copy()
        return self._convert(picture_arrays.read_array(values, self.layout))

    def _read_pil(self, picture: Image.Image) -> Image.Image:
        _check_size(picture.size)
        try:
            picture.load()
            deep = picture_arrays.is_deep(picture)
            turned = picture.getexif().get(ORIENTATION, 1) != 1
            converted = self._convert(picture_arrays.read_array(np.asarray(picture)) if deep else picture)
        except InputError:
            raise
        except BROKEN as error:
            raise InputError(f"A PIL picture cannot be read: {quote(error)}. Open its file anew.") from None
        if turned:
            warn_user(
                "A PIL picture is tagged as turned (EXIF), which processors do not see, so the model sees it lying on its "
                "side. Pass PIL.ImageOps.exif_transpose(picture), or the path of the file.",
                GuardWarning,
            )
        return converted

    def _convert(self, picture: Image.Image) -> Image.Image:
        """Return a copy in RGB, transparency laid over what the processor lays it over."""
        if picture.mode == "RGB" and "transparency" not in picture.info:
            return picture.copy()
        image_processor = getattr(self.processor, "image_processor", self.processor)
        convert = getattr(image_processor, "convert_to_rgb", None)
        converted = convert(picture) if callable(convert) else image_transforms.convert_to_rgb(picture, **_NUMPY)
        return Image.fromarray(np.asarray(converted)).convert("RGB")


def read_picture(value: Any) -> Image.Image:
    """Return a copy of a picture as PIL RGB: of a path, a PIL picture or an array.

    Raises:
        InputError: It cannot be read.
    """
    picture: Image.Image = PictureReader().read(value)
    return picture


def _check_size(size: tuple[int, int]) -> None:
    short, long = min(size), max(size)
    if short < 1:
        raise InputError(f"The picture is empty: {size[0]} x {size[1]} pixels.")
    if long > LARGEST_RATIO * short:
        raise InputError(
            f"The picture has {size[0]} x {size[1]} pixels; one side may be {LARGEST_RATIO} times the other at most: crop it."
        )


def _describe_wrong_kind(value: Any) -> str:
    hint = next((text for kinds, text in _HINTS if isinstance(value, kinds)), type(value).__name__)
    if hasattr(value, "read"):
        hint = "an open file: PIL.Image.open(file)"
    return f"A picture is a PIL image, an array, a tensor, a path, a URL or a data URI; got {hint}."
