"""The picture files of suites: found by name inside the data folder, checked before a run, loaded as RGB."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from PIL import Image

from lvlm_guard.bench.suite import Required
from lvlm_guard.bench.suites.files import BadRow, check_picture_name, missing
from lvlm_guard.bench.suites.impostors import HEAD, recognise
from lvlm_guard.errors import InputError, quote, shorten
from lvlm_guard.files import exists, is_folder
from lvlm_guard.request import picture_sources
from lvlm_guard.request.picture_files import opened_picture

_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
_PREVIEW = (32, 32)
MISSING = "missing"


@dataclass(frozen=True)
class PictureFiles:
    """Where the pictures of a suite lie.

    Args:
        suite: Name of the suite, for messages.
        need: What they are and where they come from.
        folders: Folders below the data folder, in the order in which they are searched.
    """

    suite: str
    need: Required
    folders: Sequence[str]

    def fault(self, data: Path | None, name: str) -> str | None:
        """Return in a few words why a picture cannot be used; None where it can. Its whole file is read."""
        path = self._find(data, name)
        return path if isinstance(path, str) else _decoding_fault(path)

    def file(self, data: Path | None, name: str) -> Path | None:
        """Return the file of a picture; None where there is none."""
        path = self._find(data, name)
        return None if isinstance(path, str) else path

    def load(self, data: Path | None, name: str) -> Image.Image:
        """Load a picture as RGB and upright, as guards read files, from the first folder that has it.

        Raises:
            InputError: It is in none of them, its name leads out of them, or it cannot be read.
        """
        path = self._find(data, name)
        if isinstance(path, str):
            raise self._error(data, name, path)
        try:
            return picture_sources.open_path(path)
        except InputError as error:
            raise self._error(data, name, _decoding_fault(path) or str(error)) from error

    def _find(self, data: Path | None, name: str) -> Path | str:
        """Return the file of a picture, or why there is none."""
        try:
            check_picture_name(name)
        except BadRow:
            return "that is no name of a picture inside the data folder"
        places = [data / folder / name for folder in self.folders] if data is not None else []
        path = next((place for place in places if exists(place)), None)
        if path is None:
            return MISSING
        return "it is a folder" if is_folder(path) else path

    def _error(self, data: Path | None, name: str, fault: str) -> InputError:
        if fault == MISSING:
            return InputError(f"{self.suite}: the picture {name} is missing. {missing(self.suite, data, self.need)}")
        return InputError(
            f"{self.suite}: the picture {quote(name)} cannot be read: {fault}. It comes from {self.need.source}."
        )


class PicturesInFolders:
    """What a suite whose pictures lie in folders says about them; a suite of this kind states `pictures`."""

    pictures: ClassVar[PictureFiles]

    def picture(self, data: Path | None, image: str) -> Image.Image:
        """Return a picture as RGB, from the first of the suite's folders that has it.

        Raises:
            InputError: There is none, or it cannot be read.
        """
        return self.pictures.load(data, image)

    def picture_fault(self, data: Path | None, image: str) -> str | None:
        """Return why the picture cannot be used; None where it can."""
        return self.pictures.fault(data, image)

    def picture_file(self, data: Path | None, image: str) -> Path | None:
        """Return the file of the picture; None where there is none."""
        return self.pictures.file(data, image)


def _decoding_fault(path: Path) -> str | None:
    """Decode a picture, small where its format allows that, and return why it cannot be."""
    try:
        with opened_picture(path) as image:
            image.draft("RGB", _PREVIEW)
            image.load()
    except InputError as error:
        return str(error)
    except _BROKEN as error:
        return _describe(path, error)
    return None


def _describe(path: Path, error: Exception) -> str:
    """Describe a file that is no picture by what it is instead, else by the error of its decoding."""
    try:
        with path.open("rb") as file:
            instead = recognise(file.read(HEAD))
    except OSError:
        instead = None
    return f"it is {instead}" if instead else f"broken, {shorten(str(error), 200)}"
