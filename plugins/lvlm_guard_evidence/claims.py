"""What English questions and captions claim about a picture, read by a few patterns that a callable can replace."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

Level: TypeAlias = Literal["object", "attribute", "relation", "number"]
Span: TypeAlias = tuple[int, int]
"""Where a claim stands in a text: its first character, and the one behind its last."""

DIRECTIONS = ("left", "right", "above", "below")
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}


@dataclass(frozen=True)
class Claim:
    """One statement about a picture, or the question whether it holds.

    Args:
        level: `object` says that the subject is there, `attribute` what it is like, `relation` where it is, `number` how many.
        subject: What it is about, lower case, as it was written.
        value: The attribute; None where the question is which.
        direction: `left`, `right`, `above` or `below`; None where the question is which.
        reference: What the subject is left of, right of, above or below.
        options: What an open question chooses from; empty where the parser does not know.
    """

    level: Level
    subject: str
    value: str | None = None
    direction: str | None = None
    reference: str | None = None
    options: tuple[str, ...] = ()

    @property
    def is_open(self) -> bool:
        """Whether the answer is a word of the claim, rather than yes or no."""
        return (
            (self.level == "attribute" and self.value is None)
            or (self.level == "relation" and self.direction is None)
            or self.level == "number"
        )


Parser: TypeAlias = Callable[[str], "Claim | None"]
"""Reads a question; None where it cannot."""

_NAME = r"[a-z][a-z'-]*(?: [a-z][a-z'-]*){0,3}?"
_ARTICLE = r"(?:a|an|any|some|one|the)"
_PLACE = (
    r"(?: (?:in|on|within) (?:the|this|that) (?:image|picture|photo|photograph|scene|view|frame|kitchen|harbour|harbor|"
    r"garden|street|room))?(?: here)?"
)
_SIDE = (
    r"(?:(?:located |positioned |placed |standing )?(?:on |to )?(?:the )?(?P<side>left|right)(?: side|-hand side)? of)"
)
_UPRIGHT = r"(?P<upright>above|over|on top of|higher than|below|under|underneath|beneath|lower than)"
_UPRIGHT_WORDS = {
    "above": "above", "over": "above", "on top of": "above", "higher than": "above",
    "below": "below", "under": "below", "underneath": "below", "beneath": "below", "lower than": "below",
}  # fmt: skip

_EXISTENCE = (
    rf"(?:is|are) there (?:{_ARTICLE} )?(?P<subject>{_NAME}){_PLACE}",
    rf"(?:do|can) you see (?:{_ARTICLE} )?(?P<subject>{_NAME}){_PLACE}",
    rf"does (?:the|this) (?:image|picture|photo|scene) (?:contain|show|have) (?:{_ARTICLE} )?(?P<subject>{_NAME})",
    rf"(?:is|are) {_ARTICLE} (?P<subject>{_NAME}) (?:present|visible|shown){_PLACE}",
)
_NUMBER = (
    rf"how many (?P<subject>{_NAME})(?: are there| are| do you see| can you see| is there)?{_PLACE}",
    rf"what is the number of (?P<subject>{_NAME}){_PLACE}",
)
_WHICH_ATTRIBUTE = (
    rf"what colou?r (?:is|are) the (?P<subject>{_NAME}){_PLACE}",
    rf"what (?:is|are) the colou?rs? of the (?P<subject>{_NAME}){_PLACE}",
)
_OPTION = "left|right|above|below"
_CHOICE = (
    (
        rf"(?:is|are) the (?P<subject>{_NAME}) (?:on |to )?(?:the )?(?P<first>{_OPTION}) or (?:to )?(?:the )?(?P<second>{_OPTION})"
        rf"(?: side)?(?: of)? the (?P<reference>{_NAME}){_PLACE}"
    ),
)
_RELATION = (rf"(?:is|are) the (?P<subject>{_NAME}) (?:{_SIDE}|{_UPRIGHT}) the (?P<reference>{_NAME}){_PLACE}",)
_ATTRIBUTE = (rf"(?:is|are) the (?P<subject>{_NAME}) (?:in )?(?P<value>[a-z][a-z-]*){_PLACE}",)

_MENTION = re.compile(
    r"\b(?P<article>an?|one|another|the)(?P<words>(?:\s+[\w'-]+){1,4}?)(?=\s*(?:[,.;:!?]|$)|\s+(?:and|or|with|on|in|at|of|to|by|near|next|"
    r"that|which|is|are|has|left|right|above|below|under|over|beneath)\b)",
    re.IGNORECASE,
)
_BETWEEN = re.compile(rf"\s+(?:is |are )?(?:{_SIDE}|{_UPRIGHT})\s+", re.IGNORECASE)
_ROLE = re.compile(r"(?:^|\b)(?:user|human|assistant|gpt|question|q)\s*:\s*", re.IGNORECASE)


_OTHER_WORDS = frozenset(
    (
        "no", "not", "anything", "nothing", "on", "in", "at", "with", "near", "to", "under", "by", "and", "or", "that", "which",
        "behind", "between", "beside",
    )
)  # fmt: skip
"""Words of no name: what they stand in is another question."""


def parse_question(text: str) -> Claim | None:
    """Read the last question of a text; None where there is none, or it is of no kind that is known.

    Known are: is there a X, do you see a X, are there X, does the image show a X; is the X red, what colour is the X; is the
    X left of, right of, above or below the Y, is the X left or right of the Y; how many X.
    """
    question = _find_question(text)
    for kind, patterns in _KINDS.items():
        for pattern in patterns:
            if (match := pattern.fullmatch(question)) is not None:
                return _build(kind, match.groupdict())
    return None


def _find_question(text: str) -> str:
    """Return the sentence in front of the last question mark, lower case, without the name of who asks."""
    before, mark, _ = text.rpartition("?")
    if not mark:
        return ""
    sentence = re.split(r"[.!?\n]", before)[-1]
    sentence = _ROLE.split(sentence)[-1]
    return re.sub(r"\s+", " ", sentence).strip(" ,;:\"'").lower()


def _build(kind: str, groups: dict[str, str | None]) -> Claim | None:
    subject, reference = ((groups.get(name) or "").strip() for name in ("subject", "reference"))
    if not _OTHER_WORDS.isdisjoint(f"{subject} {reference}".split()):
        return None
    if kind == "choice":
        options = (groups["first"] or "", groups["second"] or "")
        return Claim("relation", subject, reference=reference, options=options) if _are_opposite(options) else None
    if kind == "relation":
        return Claim("relation", subject, direction=_direction(groups), reference=reference)
    level: Level = "object" if kind == "object" else "number" if kind == "number" else "attribute"
    return Claim(level, subject, value=groups.get("value"))


def _are_opposite(options: tuple[str, str]) -> bool:
    return OPPOSITE[options[0]] == options[1]


def _direction(groups: dict[str, str | None]) -> str:
    upright = re.sub(r"\s+", " ", groups.get("upright") or "").lower()
    return (groups.get("side") or "").lower() or _UPRIGHT_WORDS[upright]


_WORDINGS = {
    "object": _EXISTENCE,
    "number": _NUMBER,
    "which": _WHICH_ATTRIBUTE,
    "choice": _CHOICE,
    "relation": _RELATION,
    "attribute": _ATTRIBUTE,
}
_KINDS = {kind: tuple(re.compile(pattern) for pattern in patterns) for kind, patterns in _WORDINGS.items()}


def parse_mentions(text: str, names: Sequence[str] = ()) -> list[tuple[Span, Claim]]:
    """Read what a caption claims: each object that it names, what it is like, and how two of them stand.

    Args:
        text: The caption.
        names: Names of objects. Where there are some, these are looked for, the longest first; else a mention is a phrase
            with an article, and its last word is the object.

    Returns:
        Spans and claims in the order of the text. A phrase such as "a red mug" gives two claims with one span.
    """
    mentions = list(_find_known(text, names) if names else _find_phrases(text))
    claims: list[tuple[Span, Claim]] = []
    for number, (span, subject, value) in enumerate(mentions):
        claims.append((span, Claim("object", subject)))
        if value:
            claims.append((span, Claim("attribute", subject, value=value)))
        if number + 1 < len(mentions):
            after, reference, _ = mentions[number + 1]
            between = _BETWEEN.fullmatch(text[span[1] : after[0]])
            if between is not None:
                relation = Claim("relation", subject, direction=_direction(between.groupdict()), reference=reference)
                claims.append(((span[0], after[1]), relation))
    return claims


def _find_phrases(text: str) -> Iterator[tuple[Span, str, str | None]]:
    for match in _MENTION.finditer(text):
        words = match["words"].lower().split()
        if words[-1] in (*DIRECTIONS, "image", "picture", "photo", "scene"):
            continue
        yield match.span(), words[-1], words[-2] if len(words) > 1 else None


def _find_known(text: str, names: Sequence[str]) -> Iterator[tuple[Span, str, str | None]]:
    ordered = sorted(names, key=len, reverse=True)
    alternatives = "|".join(re.escape(name).replace(r"\ ", r"\s+") for name in ordered)
    pattern = re.compile(
        rf"(?:\b(?:an?|one|another|the)\s+)?(?:\b(?P<value>[a-z][a-z-]*)\s+)?\b(?P<name>{alternatives})(?:e?s)?\b",
        re.IGNORECASE,
    )
    for match in pattern.finditer(text):
        value = (match["value"] or "").lower()
        is_article = value in ("a", "an", "one", "another", "the", "and", "or", "of", "with", "is", "there")
        start = (
            match.start("name") if is_article and value not in ("a", "an", "one", "another", "the") else match.start()
        )
        name = re.sub(r"\s+", " ", match["name"].lower())
        yield (start, match.end()), name, None if is_article or not value else value
