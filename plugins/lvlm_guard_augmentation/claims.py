"""What a sentence claims about a picture: the objects that it names, what they are like, and where they stand."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

Level: TypeAlias = Literal["object", "attribute", "relation"]
LEVELS: tuple[Level, ...] = ("object", "attribute", "relation")
SENTENCE = re.compile(r"[^.!?]*[.!?]*\s*")
PHRASE = re.compile(
    r"\b(?:an?|one|another)((?:\s+[\w-]+){1,4}?)(?=\s*(?:[,.;:!?]|$)|\s+(?:and|or|with|on|in|at|of|to|by|near|next|that|which|is|are|has)\b)",
    re.IGNORECASE,
)
"""A phrase with a singular article, as answers that go by words are split."""
_NOUN = r"\b(?:an?|one|another|the)(?:\s+[\w-]+){1,4}?"
_END = (
    r"(?=\s*(?:[,.;:!?]|$)|\s+(?:and|or|with|on|in|at|of|to|by|near|next|that|which|is|are|has|stands|sits|lies|behind|beside|left|right|"
    r"above|over|below|under|beneath)\b)"
)
MENTION = re.compile(_NOUN.replace("|the", "") + _END, re.IGNORECASE)
"""The same, ended by places such as "left of" too."""
NAMED = re.compile(_NOUN + _END, re.IGNORECASE)
"""The same, with "the" as well."""
COUNTED = re.compile(
    rf"\b(two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|[2-9]|[1-9]\d)((?:\s+[\w-]+){{1,3}}?){_END}",
    re.IGNORECASE,
)
"""A number, and what there are so many of."""
_SIDE = r"(?:(?:to|on)\s+the\s+)?(?:left|right)(?:\s+side)?\s+of"
RELATION = re.compile(
    rf"({_NOUN})(\s+(?:(?:that|which)\s+)?(is|are|stands|sits|lies)?\s*({_SIDE}|above|over|below|under|beneath)\s+)({_NOUN}){_END}",
    re.IGNORECASE,
)
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
_DIRECTION = {"over": "above", "under": "below", "beneath": "below"}
_NO_OBJECTS = {"image", "picture", "photo", "scene", "left", "right", "view"}


@dataclass(frozen=True)
class SentenceClaim:
    """One statement of a sentence, or what is asked in its place.

    Args:
        level: `object`, `attribute` or `relation`.
        piece: Where it stands: a part of the sentence; empty for what is not said.
        subject: The object.
        question: How the model is asked about it.
        value: The attribute.
        direction: `left`, `right`, `above` or `below`.
        reference: The object that the subject stands left of, and so on.
    """

    level: Level
    piece: str
    subject: str
    question: str
    value: str = ""
    direction: str = ""
    reference: str = ""

    @property
    def text(self) -> str:
        """The claim in words."""
        if self.level == "attribute":
            return f"{self.subject} is {self.value}"
        place = f" {self.direction}{' of' if self.direction in ('left', 'right') else ''} {self.reference}"
        return self.subject + (place if self.level == "relation" else "")


@dataclass(frozen=True)
class Wording:
    """How the model is asked, by level.

    Args:
        object: With `{}` for the object.
        attribute: With `{name}` and `{value}`.
        relation: With `{name}`, `{direction}` and `{reference}`.
    """

    object: str
    attribute: str
    relation: str

    def ask_object(self, piece: str, subject: str) -> SentenceClaim:
        """Return the claim that an object is there."""
        return SentenceClaim("object", piece, subject, self.object.replace("{}", subject))

    def ask_attribute(self, piece: str, subject: str, value: str) -> SentenceClaim:
        """Return the claim that an object is of some kind."""
        question = self.attribute.replace("{name}", subject).replace("{value}", value)
        return SentenceClaim("attribute", piece, subject, question, value=value)

    def ask_relation(self, piece: str, subject: str, direction: str, reference: str) -> SentenceClaim:
        """Return the claim that an object stands somewhere."""
        place = f"{direction} of" if direction in ("left", "right") else direction
        question = self.relation.replace("{name}", subject).replace("{direction}", place)
        question = question.replace("{reference}", reference)
        return SentenceClaim("relation", piece, subject, question, direction=direction, reference=reference)


def find_objects(sentence: str, wording: Wording, names: Sequence[str] = ()) -> list[SentenceClaim]:
    """Return the objects that a sentence names after a singular article, in its order."""
    phrases = [(match[0], name_object(match[0], names)) for match in MENTION.finditer(sentence)]
    return [wording.ask_object(piece, name) for piece, name in phrases if name not in _NO_OBJECTS]


def find_attributes(objects: Sequence[SentenceClaim], wording: Wording, values: Sequence[str]) -> list[SentenceClaim]:
    """Return which of some values the phrases of objects hold in front of the object."""
    return [
        wording.ask_attribute(claim.piece, claim.subject, word)
        for claim in objects
        for word in dict.fromkeys(claim.piece.lower().split()[1:])
        if word in values and word != claim.subject
    ]


def find_relations(sentence: str, wording: Wording, names: Sequence[str] = ()) -> list[SentenceClaim]:
    """Return where objects of a sentence stand, as it says."""
    return [
        wording.ask_relation(
            match[0], name_object(match[1], names), read_direction(match[4]), name_object(match[5], names)
        )
        for match in RELATION.finditer(sentence)
    ]


def read_direction(words: str) -> str:
    """Return `left`, `right`, `above` or `below` from the words of a place."""
    word = next(word for word in words.lower().split() if word in OPPOSITE or word in _DIRECTION)
    return _DIRECTION.get(word, word)


def name_object(phrase: str, names: Sequence[str] = ()) -> str:
    """Return the object of a phrase with an article: the longest end of it that is one of some names, else its last word."""
    words = phrase.lower().split()[1:]
    ends = [" ".join(words[start:]) for start in range(len(words))]
    return next((end for end in ends if end in names), ends[-1])


def mentions(text: str, name: str) -> bool:
    """Return whether a text names an object, in the plural too."""
    return re.search(rf"\b{re.escape(name)}(?:e?s)?\b", text, re.IGNORECASE) is not None


def split_sentences(text: str) -> list[str]:
    """Return the sentences of a text, with the space behind each."""
    return [sentence for sentence in SENTENCE.findall(text) if sentence.strip()]


def find_relation_parts(sentence: str) -> Iterator[re.Match[str]]:
    """Return the relations of a sentence as matches: whole, subject, between, verb, place, reference."""
    return RELATION.finditer(sentence)
