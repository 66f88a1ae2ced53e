"""Which words name the objects that a head knows: synonyms, plurals, names of several words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from lvlm_guard import InputError

IRREGULAR = {
    "people": "person", "men": "man", "women": "woman", "children": "child", "mice": "mouse", "knives": "knife",
    "leaves": "leaf", "wolves": "wolf", "sheep": "sheep", "skis": "skis", "scissors": "scissors", "geese": "goose",
    "teeth": "tooth", "feet": "foot", "shelves": "shelf", "loaves": "loaf", "calves": "calf",
}  # fmt: skip
"""Plurals that no ending tells."""


def tidy(name: str) -> str:
    """Return a name in lower case with single spaces."""
    return re.sub(r"\s+", " ", name).strip().lower()


def singular_forms(name: str) -> list[str]:
    """Return what a word may be the plural of, itself first; of several words, the last one counts."""
    before, _, word = name.rpartition(" ")
    words = [word]
    if word in IRREGULAR:
        words.append(IRREGULAR[word])
    if word.endswith("ies"):
        words.append(f"{word[:-3]}y")
    if word.endswith("es"):
        words.append(word[:-2])
    if word.endswith("s") and not word.endswith("ss"):
        words.append(word[:-1])
    return [f"{before} {each}" if before else each for each in words]


def plural(name: str) -> str:
    """Return the plural of a name; of several words, of the last one."""
    before, _, word = name.rpartition(" ")
    several = next((spelling for spelling, singular in IRREGULAR.items() if singular == word), None)
    if several is None:
        several = re.sub(r"(?<=[^aeiou])y$", "ie", word) + ("es" if word.endswith(("s", "x", "z", "ch", "sh")) else "s")
    return f"{before} {several}" if before else several


@dataclass(frozen=True)
class NamesTable:
    """The names of a head, and what else its objects are called.

    Args:
        names: Lower case, singular, each once.
        synonyms: Further names of some of them.
    """

    names: tuple[str, ...]
    synonyms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        by_word = {synonym: name for name, spellings in self.synonyms.items() for synonym in spellings}
        object.__setattr__(self, "_known", {**by_word, **{name: name for name in self.names}})

    def find(self, name: str) -> str | None:
        """Return the name under which the head knows an object; None where it does not."""
        by_word: Mapping[str, str] = getattr(self, "_known")  # noqa: B009 - set in __post_init__
        return next((by_word[form] for form in singular_forms(tidy(name)) if form in by_word), None)

    def spellings(self, name: str) -> tuple[str, ...]:
        """Return every way to write a name."""
        return (name, *self.synonyms.get(name, ()))

    def merge(self, names: Iterable[str]) -> list[str]:
        """Return names as the table knows them, each once; unknown ones are left out."""
        words = (self.find(name) for name in names)
        return list(dict.fromkeys(name for name in words if name is not None))


def build_names(words: Sequence[str], synonyms: Mapping[str, Sequence[str]] | None = None) -> NamesTable:
    """Return a table of the names of labels, with synonyms under one name.

    Raises:
        InputError: A synonym stands for two names.
    """
    owners: dict[str, str] = {}
    tidied: dict[str, tuple[str, ...]] = {}
    for name, spellings in (synonyms or {}).items():
        tidied[tidy(name)] = tuple(dict.fromkeys(tidy(synonym) for synonym in spellings))
        for synonym in tidied[tidy(name)]:
            if owners.setdefault(synonym, tidy(name)) != tidy(name):
                raise InputError(
                    f"'patch_evidence' needs synonyms of one name each, and {synonym!r} stands for {owners[synonym]!r} and for "
                    f"{tidy(name)!r}: give it to one."
                )
    names = tuple(dict.fromkeys(owners.get(tidy(name), tidy(name)) for name in words))
    return NamesTable(names, {name: spellings for name, spellings in tidied.items() if name in names})
