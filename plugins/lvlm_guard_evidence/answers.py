"""How the answers of a question begin: the first tokens of their words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lvlm_guard_evidence.claims import Claim

YES_NO = ("yes", "no")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
KINDS = (
    "existence", "is_attribute", "which_attribute", "is_side", "which_side", "is_height", "which_height", "how_many",
)  # fmt: skip
"""Kinds of questions, each with mixing weights of its own: sides are left and right, heights above and below."""
_SIDES = ("left", "right")


def kind_of(claim: Claim) -> str:
    """Return the kind of a question."""
    if claim.level == "relation":
        is_side = not {claim.direction, *claim.options}.isdisjoint(_SIDES)
        return f"{'which' if claim.is_open else 'is'}_{'side' if is_side else 'height'}"
    return {
        ("object", False): "existence",
        ("attribute", False): "is_attribute",
        ("attribute", True): "which_attribute",
    }.get((claim.level, claim.is_open), "how_many")


def find_options(claim: Claim, values: Sequence[str]) -> tuple[str, ...]:
    """Return the answers that a question chooses from: yes and no, the values that a head knows, sides, or numbers."""
    if not claim.is_open:
        return YES_NO
    if claim.level == "attribute":
        return tuple(values)
    return claim.options if claim.level == "relation" else NUMBERS


@dataclass(frozen=True, eq=False)
class FirstTokens:
    """Ids that begin the words of answers.

    Args:
        tokenize: Returns the ids of a text.
        unknown: Id of the unknown token, which begins nothing; or None.
    """

    tokenize: Callable[[str], Sequence[int]]
    unknown: Any = None
    _known_options: dict[tuple[str, ...], list[list[int]] | None] = field(default_factory=dict, init=False, repr=False)

    def find(self, options: Sequence[str]) -> list[list[int]] | None:
        """Return the ids that begin each option and no other; None where an option has none. Options are looked up once."""
        key = tuple(options)
        if key not in self._known_options:
            self._known_options[key] = self._find(options)
        return self._known_options[key]

    def _find(self, options: Sequence[str]) -> list[list[int]] | None:
        beginnings = [self.begin(option) for option in options]
        distinct = [ids.difference(*(rival for rival in beginnings if rival is not ids)) for ids in beginnings]
        return [sorted(ids) for ids in distinct] if distinct and all(distinct) else None

    def begin(self, option: str) -> set[int]:
        """Return the ids that begin an answer, in any spelling."""
        spellings = [option, option.capitalize(), option.upper()]
        if option in NUMBERS:
            spellings.append(str(NUMBERS.index(option)))
        ids = [self.tokenize(text) for spelling in spellings for text in (spelling, f" {spelling}")]
        return {each[0] for each in ids if each} - {self.unknown}
