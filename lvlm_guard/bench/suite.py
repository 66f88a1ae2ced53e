"""The protocol of a benchmark: items, pictures, parsers and measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

from PIL import Image

from lvlm_guard.bench.items import AnsweredItem, Item, Level
from lvlm_guard.bench.scoring.measures import Measure


@dataclass(frozen=True)
class Required:
    """A file or folder that the user must have, relative to the data folder.

    Args:
        path: Where it is expected; may hold `{}` or `*` for several.
        what: What it is, in a few words.
        source: Where it comes from.
        layout: One line that shows a row or the naming, for error messages.
        optional: Whether the suite runs without it.
    """

    path: str
    what: str
    source: str
    layout: str
    optional: bool = False


@dataclass(frozen=True)
class Problem:
    """A row that could not be used: the file, its line (from 1; 0 where the file has none) and what is wrong."""

    file: str
    line: int
    what: str


@dataclass(frozen=True)
class Loaded:
    """The content of a suite: its items in a fixed order, and every row that it could not use."""

    items: Sequence[Item]
    problems: Sequence[Problem] = field(default_factory=tuple)


@runtime_checkable
class Suite(Protocol):
    """A benchmark. One object serves one run; nothing is ever downloaded."""

    name: ClassVar[str]
    title: ClassVar[str]
    levels: ClassVar[tuple[Level, ...]]
    licence: ClassVar[str]
    homepage: ClassVar[str]
    required: ClassVar[tuple[Required, ...]]
    parsers: ClassVar[tuple[str, ...]]
    """Ways to read the answers, the default first."""

    def load(self, data: Path | None) -> Loaded:
        """Read all items.

        Raises:
            InputError: A required file is missing or is not what it should be; names the file and the expected layout.
        """
        ...

    def picture(self, data: Path | None, image: str) -> Image.Image:
        """Return the picture of an item, RGB.

        Raises:
            InputError: It is missing or cannot be read.
        """
        ...

    def measures(self, parser: str) -> Sequence[Measure]:
        """Return what is measured, the headline first, by a parser that the suite names."""
        ...

    def official(self, answers: Sequence[AnsweredItem], parser: str) -> Mapping[str, float | None]:
        """Return the official script's figures with its quirks of definition, default, epsilon and rounding.

        None where it would fail.
        """
        ...
