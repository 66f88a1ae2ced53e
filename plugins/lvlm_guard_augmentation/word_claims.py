"""Which words of an answer say something about the picture, and how the model is asked about each of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from lvlm_guard_augmentation.claims import (
    COUNTED,
    NAMED,
    Wording,
    find_relation_parts,
    name_object,
    read_direction,
    split_sentences,
)

WordLevel: TypeAlias = Literal["object", "attribute", "relation", "number"]
_PLACES = frozenset(
    (
        "image", "picture", "photo", "photograph", "scene", "view", "left", "right", "top", "bottom", "middle", "center", "centre",
        "background", "foreground", "side", "front", "back", "distance", "corner", "front", "end",
    )
)  # fmt: skip
"""Nouns that say where, and name nothing that could be missing."""


@dataclass(frozen=True)
class WordClaim:
    """What one word says about the picture.

    Args:
        start: Its first character in the text.
        end: The character behind its last.
        level: `object`, `attribute`, `relation` or `number`.
        question: How the model is asked about it.
        subject: The object.
        value: The attribute or the number.
        direction: `left`, `right`, `above` or `below`.
        reference: The object that the subject stands left of, and so on.
    """

    start: int
    end: int
    level: WordLevel
    question: str
    subject: str
    value: str = ""
    direction: str = ""
    reference: str = ""


def find_word_claims(text: str, wording: Wording, number: str, values: Sequence[str]) -> list[WordClaim]:
    """Return what the words of a text claim, in its order; a word claims one thing at most.

    Args:
        text: The answer.
        wording: How the model is asked about objects, attributes and relations.
        number: How it is asked about numbers, with `{number}` and `{name}`.
        values: Words that are attributes.
    """
    claims: dict[int, WordClaim] = {}
    start = 0
    for sentence in split_sentences(text):
        start = text.index(sentence, start)
        for claim in (
            *_read_phrases(sentence, start, wording, number, values),
            *_read_relations(sentence, start, wording),
        ):
            claims.setdefault(claim.start, claim)
        start += len(sentence)
    return [claims[place] for place in sorted(claims)]


def _read_phrases(
    sentence: str, start: int, wording: Wording, number: str, values: Sequence[str]
) -> Iterator[WordClaim]:
    for match in NAMED.finditer(sentence):
        yield from _read_phrase(match[0], start + match.start(), wording, values)
    for match in COUNTED.finditer(sentence):
        name = match[2].split()[-1].lower()
        if name in _PLACES or not name.endswith("s"):
            continue
        yield from _read_phrase(match[0], start + match.start(), wording, values)
        question = number.replace("{number}", match[1].lower()).replace("{name}", name)
        yield WordClaim(start + match.start(1), start + match.end(1), "number", question, name, match[1].lower())


def _read_phrase(phrase: str, start: int, wording: Wording, values: Sequence[str]) -> Iterator[WordClaim]:
    """Yield the object of a phrase, and the attributes in front of it."""
    subject = name_object(phrase)
    if subject in _PLACES:
        return
    end = start + len(phrase)
    yield WordClaim(end - len(subject), end, "object", wording.ask_object("", subject).question, subject)
    for word in list(re.finditer(r"[\w-]+", phrase))[1:-1]:
        value = word[0].lower()
        if value in values:
            question = wording.ask_attribute("", subject, value).question
            yield WordClaim(start + word.start(), start + word.end(), "attribute", question, subject, value)


def _read_relations(sentence: str, start: int, wording: Wording) -> Iterator[WordClaim]:
    for match in find_relation_parts(sentence):
        subject, reference = name_object(match[1]), name_object(match[5])
        direction = read_direction(match[4])
        word = re.search(r"left|right|above|over|below|under|beneath", match[4], re.IGNORECASE)
        if word is None or {subject, reference} & _PLACES:
            continue
        place = start + match.start(4)
        question = wording.ask_relation("", subject, direction, reference).question
        yield WordClaim(
            place + word.start(), place + word.end(), "relation", question, subject, "", direction, reference
        )
