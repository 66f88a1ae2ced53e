"""What a text in plain English says is in a picture: things by any of their names, how many, in which colour and size."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from lvlm_guard.testbed.collage.world.things import COLOURS, NUMBERS, SIZES, THINGS

_NUMBER_WORDS: Mapping[str, int] = {
    **{word: number for number, word in enumerate(NUMBERS, 1)},
    **{str(number): number for number in range(1, len(NUMBERS) + 1)},
    "single": 1,
    "pair of": 2,
}
_SIZE_WORDS: Mapping[str, str] = {
    **{size: size for size in SIZES},
    **dict.fromkeys(("large", "huge"), SIZES[0]),
    **dict.fromkeys(("little", "tiny"), SIZES[1]),
}
_DENIED = re.compile(r"(?:\bno|\bwithout(?: any| an?)?|(?:\bnot|n't) (?:an?|any))$", re.IGNORECASE)
_MODIFIERS = re.compile(
    rf"(?:\b(?P<number>{'|'.join(map(re.escape, _NUMBER_WORDS))})\s+)?"
    rf"(?:(?P<size>{'|'.join(_SIZE_WORDS)}),?\s+)?(?:(?P<colour>{'|'.join(COLOURS)})\s+)?$",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Mention:
    """A thing that a text names.

    Args:
        name: The thing.
        span: Where its name is in the text, with its colour, size and number.
        number: How many the text says there are: of a plural without a number, None.
        colour: Its colour, None where none is said.
        size: "big" or "small", None where none is said.
    """

    name: str
    span: tuple[int, int]
    number: int | None
    colour: str | None
    size: str | None


Reader = Callable[[str], list[Mention]]
"""Maps a text to what it names; `read_mentions` is one, and a suite takes another in its place."""


def read_mentions(text: str) -> list[Mention]:
    """Return what a text names, in its order, repeats included; what it denies ("no dog") is left out."""
    return list(_mentions(text))


def _mentions(text: str) -> Iterator[Mention]:
    pattern, forms = _forms()
    for match in pattern.finditer(text):
        name, is_plural = forms[re.sub(r"\s+", " ", match[0].lower())]
        before = text[: match.start()]
        words = _MODIFIERS.search(before)
        start = words.start() if words else match.start()
        if _DENIED.search(text[:start].rstrip()):
            continue
        groups = words.groupdict() if words else {}
        yield Mention(
            name,
            (start, match.end()),
            _number(groups.get("number"), is_plural=is_plural),
            groups["colour"].lower() if groups.get("colour") else None,
            _SIZE_WORDS[groups["size"].lower()] if groups.get("size") else None,
        )


def _number(word: str | None, *, is_plural: bool) -> int | None:
    if word:
        return _NUMBER_WORDS[word.lower()]
    return None if is_plural else 1


@cache
def _forms() -> tuple[re.Pattern[str], Mapping[str, tuple[str, bool]]]:
    """Return a pattern for every name, longer ones first, and what each stands for, with whether it is a plural; what is the same in both numbers is none."""
    forms: dict[str, tuple[str, bool]] = {}
    for thing in THINGS:
        singular = (thing.name, *thing.synonyms)
        forms.update(dict.fromkeys(singular, (thing.name, False)))
        for word in (thing.plurals, *map(plural, thing.synonyms)):
            forms.setdefault(word, (thing.name, True))
    ordered = sorted(forms, key=len, reverse=True)
    words = "|".join(re.escape(form).replace(r"\ ", r"[\s-]") for form in ordered)
    return re.compile(rf"\b(?:{words})\b", re.IGNORECASE), {
        **forms,
        **{form.replace(" ", "-"): meaning for form, meaning in forms.items()},
    }


def plural(words: str) -> str:
    """Return the plural by rule, of "slice of cake" that of the first word."""
    first, of, tail = words.partition(" of ")
    if of:
        return plural(first) + of + tail
    if re.search(r"(?:s|x|ch|sh)$", first):
        return f"{first}es"
    if re.search(r"[^aeiou]y$", first):
        return f"{first[:-1]}ies"
    return f"{first}s"
