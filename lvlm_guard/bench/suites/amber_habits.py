"""Habits of AMBER: what its annotations of the other images lead to expect, for questions and for descriptions."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace

from lvlm_guard.bench.items import AnsweredItem, Item
from lvlm_guard.bench.scoring.intervals import mean_share
from lvlm_guard.bench.scoring.measures import Counts, Measure, each
from lvlm_guard.bench.scoring.nouns import our_singular
from lvlm_guard.bench.suites.habits import Aspect, ObjectHabits, Statement, StatementHabits, add_habit

EXPECTED, UNEXPECTED = "expected", "unexpected"
"""Where the `extra` of a description lists the objects present that habit leads to, and those it leads away from."""

_EXISTENCE = re.compile(r"Is there an? (.+) in this image", re.IGNORECASE)
_CONTACT = re.compile(r"Is there direct contact between the (.+) and (?:the )?(.+?)\?", re.IGNORECASE)
_PATTERNS = {
    "state": re.compile(r"(?:Is|Are) the (.+) (\S+) in this image", re.IGNORECASE),
    "number": re.compile(r"(?:Is|Are) there (\S+) (.+) in this image", re.IGNORECASE),
    "action": re.compile(r"(?:Do|Does) the (.+) (\S+) in this image", re.IGNORECASE),
}


def add_habits(items: Sequence[Item], all_items: Iterable[Item]) -> tuple[Item, ...]:
    """Add the habit of every question, and to descriptions which of the objects present habit leads to.

    Args:
        items: The items.
        all_items: All questions and descriptions of the suite, whose truths the habits are estimated from.
    """
    every = list(all_items)
    present = {str(item.image): set(item.truth["truth"]) for item in every if _is_description(item)}
    questions = [(str(item.image), name) for item in every if (name := _object(item)) is not None]
    named = [(image, name) for image, names in present.items() for name in names]
    objects = ObjectHabits(present, [*questions, *named])
    statements = StatementHabits(
        Statement(str(item.image), aspects, item.truth == "yes") for item in every if (aspects := _aspects(item))
    )
    return tuple(
        _split(item, objects) if _is_description(item) else add_habit(item, _habit(item, objects, statements))
        for item in items
    )


def _is_description(item: Item) -> bool:
    return isinstance(item.truth, dict)


def _habit(item: Item, objects: ObjectHabits, statements: StatementHabits) -> str | None:
    if (name := _object(item)) is not None:
        return objects.habit(str(item.image), name)
    aspects = _aspects(item)
    return statements.habit(str(item.image), aspects) if aspects else None


def _object(item: Item) -> str | None:
    match = _EXISTENCE.match(item.prompt) if item.kind == "discriminative-hallucination" else None
    return match[1].lower() if match else None


def _aspects(item: Item) -> Sequence[Sequence[Aspect]]:
    """Return what a question about an attribute or a contact shares with others; nothing for other questions."""
    if item.level == "relation":
        if (match := _CONTACT.match(item.prompt)) is None:
            return ()
        first, second = sorted((match[1].lower(), match[2].lower()))
        return [("contact", first, second)], [("contact", first), ("contact", second)]
    kind = item.kind.rpartition("-")[2]
    if kind not in _PATTERNS or (match := _PATTERNS[kind].match(item.prompt)) is None:
        return ()
    first, second = match[1].lower(), match[2].lower()
    value, noun = (first, our_singular(second)) if kind == "number" else (second, first)
    return [(kind, noun, value)], [(kind, value)]


def _split(item: Item, objects: ObjectHabits) -> Item:
    habits = {name: objects.habit(str(item.image), name) for name in dict.fromkeys(item.truth["truth"])}
    lists = {EXPECTED: "yes", UNEXPECTED: "no"}
    extra = {key: [name for name, habit in habits.items() if habit == answer] for key, answer in lists.items()}
    return replace(item, extra={**item.extra, **extra})


def cover_measures(covered: Callable[[AnsweredItem], Collection[str]]) -> list[Measure]:
    """Build the share of objects present that are named: of those habit leads to, of those it leads away from, and the mean.

    Args:
        covered: Returns the objects present that a description names, in lower case.
    """

    def count(answered: AnsweredItem) -> Counts | None:
        lists = [answered.item.extra.get(key) for key in (EXPECTED, UNEXPECTED)]
        if not any(lists):
            return None
        covered_objects = covered(answered)
        expected, unexpected = ([name.lower() in covered_objects for name in names or ()] for names in lists)
        return float(sum(expected)), float(len(expected)), float(sum(unexpected)), float(len(unexpected))

    def of(place: int) -> Callable[[AnsweredItem], Counts | None]:
        return lambda answered: None if (counts := count(answered)) is None else counts[place : place + 2]

    title = "objects present that are named"
    return [
        Measure("cover_habit_balanced", "object", f"{title}, mean of habit true and breaking", each(count), mean_share),
        Measure("cover_habit_true", "object", f"{title}, where habit leads to them", each(of(0))),
        Measure("cover_habit_breaking", "object", f"{title}, where habit leads away from them", each(of(2))),
    ]
