"""The words of an answer, and the tokens that each of them is written with."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")
UNFINISHED = "\ufffd"
"""What part of a character decodes to."""


@dataclass(frozen=True)
class AnswerWord:
    """One word of an answer.

    Args:
        text: The word.
        start: Its first character in the answer.
        end: The character behind its last.
        first: The token that it begins in.
        tokens: How many tokens it takes, parts of neighbours included where a token holds several words.
    """

    text: str
    start: int
    end: int
    first: int
    tokens: int


def split_words(tokenizer: Any, ids: Sequence[int]) -> tuple[str, list[AnswerWord]]:
    """Return the text of an answer, and its words in order.

    Args:
        tokenizer: Decodes ids.
        ids: The tokens of the answer.
    """
    ends = find_ends(tokenizer, ids)
    text = _decode(tokenizer, ids)
    words, first = [], 0
    for match in WORD.finditer(text):
        while ends[first] <= match.start():
            first += 1
        last = first
        while ends[last] < match.end():
            last += 1
        words.append(AnswerWord(match[0], match.start(), match.end(), first, last - first + 1))
    return text, words


def find_ends(tokenizer: Any, ids: Sequence[int]) -> list[int]:
    """Return how many characters of the answer are written once each token is there.

    A few tokens are decoded at a time, which takes time by the length of the answer; where the pieces do not make up the whole,
    as where decoding tidies spaces, every beginning is decoded.
    """
    lengths = _measure_pieces(tokenizer, ids)
    text = _decode(tokenizer, ids)
    if "".join(piece for piece, _ in lengths) == text:
        return [end for _, end in lengths]
    ends = [_measure_common(text, _decode(tokenizer, ids[: count + 1])) for count in range(len(ids))]
    for number in range(len(ends) - 2, -1, -1):
        ends[number] = min(ends[number], ends[number + 1])
    return [*ends[:-1], len(text)] if ends else []


def _measure_pieces(tokenizer: Any, ids: Sequence[int]) -> list[tuple[str, int]]:
    """Return what each token adds once its characters are whole, and how long the text is with it, parts of characters apart."""
    pieces, start, read, end = [], 0, 0, 0
    for count in range(1, len(ids) + 1):
        before, text = _decode(tokenizer, ids[start:read]), _decode(tokenizer, ids[start:count])
        piece = ""
        if (len(text) > len(before) and not text.endswith(UNFINISHED)) or count == len(ids):
            piece = text[len(before) :]
            start, read = read, count
        end += len(piece)
        started = 0 if piece else max(len(text.rstrip(UNFINISHED)) - len(before), 0)
        pieces.append((piece, end + started))
    return pieces


def _measure_common(text: str, beginning: str) -> int:
    """Return how many characters two texts have in common at their beginning."""
    pairs = enumerate(zip(text, beginning, strict=False))
    return next((place for place, (left, right) in pairs if left != right), min(len(text), len(beginning)))


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True))
