"""Doubtful words in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.text import Text

STRONG = 0.9
"""Doubt from which a word is shown in the strongest way."""
THRESHOLD = 0.5
"""Doubt from which a word is doubtful."""


def is_doubtful(word: Mapping[str, Any]) -> bool:
    """Return whether a word of `report.results["doubt"]` is shown as doubtful: only what was asked about is."""
    return word["by"] == "margin" and word["doubt"] >= THRESHOLD


def colour_words(text: str, words: Sequence[tuple[tuple[int, int], float, bool]]) -> Text:
    """Return a text whose doubtful words are underlined and coloured, with their doubt in brackets behind them.

    Args:
        text: The answer.
        words: Span, doubt and whether it is doubtful, of each word, in the order of the text.
    """
    from rich.text import Text  # noqa: PLC0415 - only for this

    written, end = Text(), 0
    for (start, stop), doubt, is_doubtful in words:
        if not is_doubtful:
            continue
        written.append(text[end:start])
        written.append(
            text[start:stop], style="bold underline dark_orange" if doubt >= STRONG else "underline dark_orange"
        )
        written.append(f"[{doubt:.2f}]", style="dim")
        end = stop
    return written.append(text[end:])
