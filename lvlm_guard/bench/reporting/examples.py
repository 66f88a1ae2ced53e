"""Answers to show side by side: where stacks differ from greedy, gains and losses in equal measure, drawn by a seed."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lvlm_guard.bench.items import AnsweredItem, Item
from lvlm_guard.bench.running.systems import GREEDY
from lvlm_guard.bench.scoring.intervals import Totals
from lvlm_guard.bench.scoring.measures import Counts, Measure

EACH = 6
"""Examples of gains, and of losses, for a suite."""

Effect = Literal["gain", "loss", "neither"]
Spans = Sequence[tuple[int, int]]
Invented = Callable[[Item, str], Spans]
"""Maps an item and an answer to the (start, end) of every word in it that names what is not in the picture, in order."""


@dataclass(frozen=True)
class Piece:
    """A run of an answer's text; `invented` where it names what is not in the picture."""

    text: str
    invented: bool = False


@dataclass(frozen=True)
class Reply:
    """One answer and all who gave it. `effect` is beside greedy's answer, None for greedy's own."""

    systems: tuple[str, ...]
    pieces: tuple[Piece, ...]
    effect: Effect | None


@dataclass(frozen=True)
class Example:
    """One item: what is true, greedy's reply first, then that of the stack it was drawn for, then those of most systems.

    Controls stand beside the replies that they gave too; what they alone said is left out.
    """

    item: Item
    truth: str
    stack: str
    effect: Effect
    replies: tuple[Reply, ...]


@dataclass(frozen=True)
class ExampleSet:
    """Examples, and of how many they were drawn.

    Args:
        examples: What is shown.
        gains: Answers of stacks that make their measure better in the place of greedy's.
        losses: Those that make it worse.
        neither: Those that differ and do not move it.
    """

    examples: tuple[Example, ...]
    gains: int
    losses: int
    neither: int


@dataclass(frozen=True)
class _Yardstick:
    """What an answer is judged by: a measure, and greedy's sums of its counts."""

    measure: Measure
    totals: Totals

    def effect(self, plain: AnsweredItem, changed: AnsweredItem) -> Effect:
        """Judge what happens to greedy's score if one of its answers is replaced by another."""
        old, new = self.measure.count([plain]), self.measure.count([changed])
        if old is None or new is None:
            return "neither"
        before = float(self.measure.statistic(self.totals))
        after = float(self.measure.statistic(self.totals + np.subtract(new, old)))
        if math.isnan(before) or math.isnan(after) or math.isclose(before, after, abs_tol=1e-12):
            return "neither"
        return "gain" if (after > before) == self.measure.higher_is_better else "loss"


def choose(
    answers_by_system: Mapping[str, Sequence[AnsweredItem]],
    stacks: Sequence[str],
    measures: Sequence[Measure],
    parser: str,
    invented: Invented | None = None,
    *,
    each: int = EACH,
    seed: int = 0,
) -> ExampleSet:
    """Choose examples. Every stack has its turn, and each turn draws at random from what that stack changed.

    An answer is a gain or a loss by the first measure that counts its item alone and of which more or less is better.

    Args:
        answers_by_system: Answers by system.
        stacks: Whose differences count.
        measures: The suite's measures.
        parser: How answers are read; chooses the truth where an item has one for each.
        invented: Finds what is not in the picture; nothing is marked without it.
        each: Most gains, and most losses; as many of both where there are both.
        seed: Of the draw.
    """
    plain = {answer.item.id: answer for answer in answers_by_system.get(GREEDY, ())}
    effects = _effects(
        plain,
        {name: answers_by_system[name] for name in stacks if name in answers_by_system},
        _yardsticks(plain.values(), measures),
    )
    kinds = {kind: [case for case, effect in effects.items() if effect == kind] for kind in ("gain", "loss", "neither")}
    most = min((len({item for _, item in kinds[kind]}) for kind in ("gain", "loss") if kinds[kind]), default=0)
    cases: list[Case] = []
    for kind in ("gain", "loss"):
        draw = random.Random(f"{seed} {kind}")  # noqa: S311 - no cryptography
        cases += _draw(kinds[kind], min(each, most), draw, {item for _, item in cases})
    comparable = {
        name: [answer for answer in answers if answer.item.id in plain] for name, answers in answers_by_system.items()
    }
    examples = tuple(_example(case, effects, plain, comparable, stacks, parser, invented) for case in cases)
    return ExampleSet(examples, *(len(kinds[kind]) for kind in ("gain", "loss", "neither")))


Case = tuple[str, str]
"""A stack and the id of an item that it answers otherwise than greedy."""


def _yardsticks(plain: Iterable[AnsweredItem], measures: Sequence[Measure]) -> dict[str, _Yardstick]:
    """Return the measure that each item is judged by."""
    answers = list(plain)
    yardsticks: dict[str, _Yardstick] = {}
    for measure in measures:
        if measure.higher_is_better is not None:
            counts = {answer.item.id: _count_alone(measure, answer) for answer in answers}
            counted = {name: values for name, values in counts.items() if values is not None}
            if counted:
                stick = _Yardstick(measure, np.sum(np.array(list(counted.values()), dtype=np.float64), axis=0))
                yardsticks = {**dict.fromkeys(counted, stick), **yardsticks}
    return yardsticks


def _count_alone(measure: Measure, answer: AnsweredItem) -> Counts | None:
    return measure.count([answer]) if measure.group(answer.item) == answer.item.id else None


def _effects(
    plain: Mapping[str, AnsweredItem],
    answers_by_system: Mapping[str, Sequence[AnsweredItem]],
    sticks: Mapping[str, _Yardstick],
) -> dict[Case, Effect]:
    """Judge every answer that differs."""
    return {
        (stack, answer.item.id): sticks[answer.item.id].effect(plain[answer.item.id], answer)
        if answer.item.id in sticks
        else "neither"
        for stack, answers in answers_by_system.items()
        for answer in answers
        if answer.item.id in plain and answer.text != plain[answer.item.id].text
    }


def _draw(cases: Sequence[Case], count: int, draw: random.Random, used_items: Collection[str]) -> list[Case]:
    """Draw cases, one of each stack in turn in a drawn order, each item once."""
    by_stack: dict[str, list[Case]] = {}
    for case in cases:
        by_stack.setdefault(case[0], []).append(case)
    queues = [
        draw.sample(by_stack[stack], len(by_stack[stack])) for stack in draw.sample(sorted(by_stack), len(by_stack))
    ]
    shown_items, chosen = set(used_items), list[Case]()
    while len(chosen) < count and any(queues):
        for queue in queues:
            fresh = _next(queue, shown_items)
            if fresh is not None and len(chosen) < count:
                shown_items.add(fresh[1])
                chosen.append(fresh)
    return chosen


def _next(queue: list[Case], shown_items: Collection[str]) -> Case | None:
    while queue:
        if (case := queue.pop())[1] not in shown_items:
            return case
    return None


def _example(
    case: Case,
    effects: Mapping[Case, Effect],
    plain: Mapping[str, AnsweredItem],
    answers_by_system: Mapping[str, Sequence[AnsweredItem]],
    stacks: Sequence[str],
    parser: str,
    invented: Invented | None,
) -> Example:
    """Build an example of one item with the answers of all systems, equal texts together."""
    item = plain[case[1]].item
    texts = {
        name: answer.text
        for name, answers in answers_by_system.items()
        for answer in answers
        if answer.item.id == item.id
    }
    replies: dict[str, list[str]] = {texts[GREEDY]: [GREEDY], texts[case[0]]: [case[0]]}
    for system in dict.fromkeys((*(name for name in stacks if name in texts), *texts)):
        if (system in stacks or texts[system] in replies) and system not in (GREEDY, case[0]):
            replies.setdefault(texts[system], []).append(system)
    listed_replies = [
        Reply(
            tuple(systems),
            pieces(text, invented(item, text) if invented else ()),
            _find_effect(systems, item.id, effects),
        )
        for text, systems in replies.items()
    ]
    ordered = (*listed_replies[:2], *sorted(listed_replies[2:], key=lambda reply: -len(reply.systems)))
    return Example(item, truth(item.truth, parser), case[0], effects[case], ordered)


def _find_effect(systems: Sequence[str], item: str, effects: Mapping[Case, Effect]) -> Effect | None:
    """Return the effect of one text, whichever stack gave it; None where only greedy and controls gave it."""
    return next((effects[system, item] for system in systems if (system, item) in effects), None)


def pieces(text: str, spans: Spans) -> tuple[Piece, ...]:
    """Cut a text so that every span is a piece of its own; spans that overlap one before them are left out."""
    cut: list[Piece] = []
    end = 0
    for start, stop in sorted(spans):
        if end <= start < stop <= len(text):
            cut += [Piece(text[end:start]), Piece(text[start:stop], invented=True)]
            end = stop
    return tuple(piece for piece in (*cut, Piece(text[end:])) if piece.text)


def truth(value: Any, parser: str) -> str:
    """Write a truth in words: a text, a list with commas, the parser's own where there is one for each parser."""
    if isinstance(value, Mapping):
        return truth(value[parser], parser) if parser in value else json.dumps(value, ensure_ascii=False)
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
