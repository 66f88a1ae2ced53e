"""What answers about a world say, and what habit puts into a picture: all that scoring has to know of a world."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from lvlm_guard.bench.items import Item
from lvlm_guard.bench.scoring.scores import parse_word

Named = tuple[str | None, str]
"""A thing in a text: its colour, None where none is said, and its name."""


@dataclass(frozen=True)
class WorldReading:
    """How the answers about one world are read. `truth` of an item that asks for a caption is a true caption.

    Args:
        answers: The words of the questions that are not yes/no, by kind.
        mentions: What a text names, in its order, repeats included.
        habitual: Names in a true caption that habit puts into its picture.
        expected: Names that habit puts into the picture of a true caption and that are not there.
        keeps_habits: Whether the picture that an item describes has nothing unusual to name.
        typical_colour: The colour of each thing by habit.
        spellings: Words for figures in answers, such as "two" for "2".
    """

    answers: Mapping[str, Sequence[str]]
    mentions: Callable[[str], Sequence[Named]]
    habitual: Callable[[str], set[str]]
    expected: Callable[[str], set[str]]
    keeps_habits: Callable[[Item], bool]
    typical_colour: Mapping[str, str]
    spellings: Mapping[str, str] = field(default_factory=dict)

    def read_word(self, kind: str, text: str) -> str | None:
        """Return the first word of an answer that is one of its kind's, or None."""
        spelt = re.sub(r"\d+", lambda figure: self.spellings.get(figure[0], figure[0]), text)
        return parse_word(spelt, self.answers[kind])

    def present(self, item: Item) -> set[str]:
        """Return the names of what is in the picture of a caption."""
        return {name for _, name in self.mentions(item.truth)}

    def named(self, text: str) -> list[str]:
        """Return the names that a text mentions, repeats included."""
        return [name for _, name in self.mentions(text)]

    def colours(self, item: Item) -> dict[str, str]:
        """Return the colours of what is in the picture of a caption, where they are known."""
        return {name: colour for colour, name in self.mentions(item.truth) if colour is not None}

    def coloured(self, item: Item, text: str) -> list[tuple[str, str]]:
        """Return (said colour, true colour) for each thing that a text names in a colour and whose own is known."""
        true = self.colours(item)
        return [
            (spoken_colour, true[name])
            for spoken_colour, name in self.mentions(text)
            if spoken_colour is not None and name in true
        ]
