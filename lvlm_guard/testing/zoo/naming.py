"""The special tokens of a processor, for models whose config names none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

LETTERS = 0x4E00
"""Characters from here on are no digits."""


class NamedTokens:
    """Stands in for a processor and its tokenizer: knows special tokens by word, and processes nothing.

    Args:
        words: Ids by word.
        names: Words by the name of the attribute that holds them.
    """

    def __init__(self, words: Mapping[str, int], names: Mapping[str, str]) -> None:
        self.added_tokens_decoder = {token: word for word, token in words.items()}
        self._words = dict(words)
        vars(self).update(names)

    def convert_tokens_to_ids(self, word: str) -> int | None:
        """Return the id of a special token."""
        return self._words.get(word)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return a text of tokens; every other token is a word of its own."""
        return "".join(self.added_tokens_decoder.get(token, f"[word {chr(LETTERS + token)}]") for token in tokens)

    def __call__(self, **_: Any) -> NoReturn:
        """Refuse to process anything."""
        raise NotImplementedError("This only names tokens.")
