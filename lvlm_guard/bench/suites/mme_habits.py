"""Habits of MME's four tasks: which objects, numbers, colours and places its other pictures lead to expect."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from lvlm_guard.bench.items import Item
from lvlm_guard.bench.scoring.nouns import our_singular
from lvlm_guard.bench.suites.habits import Aspect, ObjectHabits, Statement, StatementHabits, add_habit

_TAIL = re.compile(
    r"\s*(?:(?:appear |shown )?in (?:this|the) (?:image|picture|photo))?\s*\?.*", re.IGNORECASE | re.DOTALL
)
_THERE_IS = re.compile(r"(?:is|are) there (?:only |a total of )?(.+)", re.IGNORECASE)
_ARTICLE = re.compile(r"(?:an?|any|some) ", re.IGNORECASE)
_PLACE = re.compile(
    r"(?:is|are) the (.+?) ((?:on|to|in|at|above|below|under|over|behind|beside|near|next)\b.*) (?:the|an?) (.+)",
    re.IGNORECASE,
)


def add_habits(items: Sequence[Item]) -> tuple[Item, ...]:
    """Add the habit of every question; None where it cannot be read, or where too few pictures tell.

    A picture that several tasks ask about is one picture, by the name of its file.
    """
    present: dict[str, set[str]] = {_picture(item): set() for item in items}
    for item in items:
        present[_picture(item)].update(_shown_objects(item))
    questions = [(_picture(item), name) for item in items if (name := _object(item)) is not None]
    objects = ObjectHabits(present, questions)
    statements = StatementHabits(
        Statement(_picture(item), aspects, item.truth == "yes") for item in items if (aspects := _aspects(item))
    )
    return tuple(add_habit(item, _habit(item, objects, statements)) for item in items)


def _picture(item: Item) -> str:
    return PurePosixPath(item.image or item.id).stem


def _habit(item: Item, objects: ObjectHabits, statements: StatementHabits) -> str | None:
    if (name := _object(item)) is not None:
        return objects.habit(_picture(item), name)
    aspects = _aspects(item)
    return statements.habit(_picture(item), aspects) if aspects else None


def _object(item: Item) -> str | None:
    """Return the object that a question of the task "existence" asks about."""
    phrase = _phrase(item) if item.kind == "existence" else None
    return our_singular(phrase) if phrase else None


def _shown_objects(item: Item) -> Sequence[str]:
    """Return the objects that a true statement puts into its picture."""
    if item.truth != "yes":
        return ()
    if (name := _object(item)) is not None:
        return (name,)
    aspects = _aspects(item)
    if not aspects:
        return ()
    kind, *words = aspects[0][0]
    return (words[0], words[2]) if kind == "position" else (words[0],)


def _aspects(item: Item) -> Sequence[Sequence[Aspect]]:
    """Return what a question about a number, a colour or a place shares with others; nothing where it cannot be read."""
    if item.kind == "position":
        match = _PLACE.fullmatch(_TAIL.sub("", item.prompt))
        if match is None:
            return ()
        first, place, second = (part.lower() for part in match.groups())
        return [("position", first, place, second)], [("position", first, place), ("position", place, second)]
    words = (_phrase(item) or "").split()
    if item.kind not in ("count", "color") or len(words) < 2:  # noqa: PLR2004 - a value and a noun
        return ()
    value = words[0] if item.kind == "count" else " ".join(words[:-1])
    noun = our_singular(words[-1])
    return [(item.kind, noun, value)], [(item.kind, value)]


def _phrase(item: Item) -> str | None:
    """Return what is said to be there, without an article: "red coat", "two person"."""
    match = _THERE_IS.fullmatch(_TAIL.sub("", item.prompt))
    return _ARTICLE.sub("", match[1].lower(), count=1) if match else None
