"""A simulated run: a model of weak evidence and strong habit, sound improvements of it, and cheats that see nothing."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from lvlm_guard.bench.items import LEVELS, AnsweredItem, Item
from lvlm_guard.bench.scoring.intervals import Totals, share
from lvlm_guard.bench.scoring.measures import Measure, each
from lvlm_guard.bench.scoring.scores import count_caption
from lvlm_guard.bench.suite import Loaded

SIDES = ("yes", "no")
WORDS = [f"thing{number}" for number in range(20)]
CAPTION = "caption"
HABIT, NOISE, LEAN = 0.8, 1.0, 0.0
"""Of a margin: the weight of habit, of noise, and a constant; evidence has the weight of 1."""


def _halves_mean(totals: Totals) -> Totals:
    """The mean of the shares of right answers in each half and on each side of the truth that was counted."""
    cells = totals.reshape(*totals.shape[:-1], -1, 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.nanmean(cells[..., 0] / cells[..., 1], -1))


def _count(halves: Sequence[bool], level: str | None, answer: AnsweredItem) -> tuple[float, ...] | None:
    item = answer.item
    keeps = item.truth == item.extra.get("habit")
    if item.kind == CAPTION or level not in (None, item.level) or keeps not in halves:
        return None
    counts = np.zeros((len(halves), 2, 2))
    counts[halves.index(keeps), SIDES.index(item.truth)] = (answer.text.lower() == item.truth, 1)
    return tuple(counts.ravel().tolist())


def _habit_measures(level: str | None) -> list[Measure]:
    kinds = {"habit_balanced": [True, False], "habit_true": [True], "habit_breaking": [False]}
    ending = "" if level is None else f"_{level}"
    return [
        Measure(
            name + ending, level or "all", f"{name}{ending} told", each(partial(_count, halves, level)), _halves_mean
        )
        for name, halves in kinds.items()
    ]


def _caption_counts(pick: Callable[[Any], tuple[float, float]], answer: AnsweredItem) -> tuple[float, float] | None:
    if answer.item.kind != CAPTION:
        return None
    named = [word for word in answer.text.split() if word in WORDS]
    return pick(count_caption(named, answer.item.truth, 1))


@dataclass(frozen=True)
class Planted:
    """Questions half of whose truths keep habit, and captions."""

    name: ClassVar[str] = "planted"
    title: ClassVar[str] = "Planted"
    levels: ClassVar[tuple[Any, ...]] = LEVELS
    licence: ClassVar[str] = "none"
    homepage: ClassVar[str] = ""
    required: ClassVar[tuple[Any, ...]] = ()
    parsers: ClassVar[tuple[str, ...]] = ("ours",)

    pictures: int = 120

    def load(self, data: Path | None) -> Loaded:
        """Two questions a level about each picture, every mix of truth and habit as often, and a caption."""
        draw = random.Random(0)
        items = []
        for picture in range(self.pictures):
            for at, level in enumerate(LEVELS):
                for number in range(2):
                    mix = picture + 2 * number + at
                    extra = {"habit": SIDES[(mix // 2) % 2]}
                    truth = SIDES[mix % 2]
                    items.append(
                        Item(f"{picture}/{level}/{number}", f"p{picture}", "a", truth, level, "is", extra=extra)
                    )
            present = draw.sample(WORDS, 5)
            items.append(Item(f"{picture}/caption", f"p{picture}", "tell", present, "object", CAPTION))
        return Loaded(items)

    def picture(self, data: Path | None, image: str) -> Image.Image:
        """A picture of nothing."""
        return Image.new("RGB", (4, 4))

    def measures(self, parser: str) -> Sequence[Measure]:
        """Habit-balanced accuracy, over all levels first, and its halves; inventions and recall."""
        chair = each(partial(_caption_counts, lambda counts: (counts.absent, counts.named)))
        recall = each(partial(_caption_counts, lambda counts: (counts.found, counts.present)))
        return (
            *_habit_measures(None),
            *(measure for level in LEVELS for measure in _habit_measures(level)),
            Measure("chair_i", "object", "inventions", chair, share, higher_is_better=False),
            Measure("recall", "object", "recall", recall, share),
        )

    def official(self, answers: Sequence[AnsweredItem], parser: str) -> dict[str, float]:
        """Nothing."""
        return {}


Margin = Callable[["Seen"], float]
Caption = Callable[["Seen"], str]


@dataclass(frozen=True)
class Seen:
    """What the model has of one item: signs of truth and of habit, the same noise for all systems, and its caption."""

    item: Item
    evidence: float
    habit: float
    noise: float
    other: float
    chance: float
    caption: str
    sure: str
    """The caption without most inventions."""

    @property
    def plain(self) -> float:
        """Greedy's margin."""
        return self.evidence + HABIT * self.habit + self.noise + LEAN


def see(items: Sequence[Item], seed: int = 0) -> list[Seen]:
    """Draw what the model has of every item; `other` is the evidence of another picture."""
    draw = random.Random(seed)
    seen = []
    for item in items:
        names, sure = _names(item, draw) if item.kind == CAPTION else ([], [])
        evidence, habit = (
            {"yes": 1.0, "no": -1.0}.get(str(value), 0.0) for value in (item.truth, item.extra.get("habit"))
        )
        noise, other, chance = NOISE * draw.gauss(0, 1), draw.choice((1.0, -1.0)), draw.choice((1.0, -1.0))
        seen.append(Seen(item, evidence, habit, noise, other, chance, " ".join(names), " ".join(sure)))
    return seen


def _names(item: Item, draw: random.Random) -> tuple[list[str], list[str]]:
    named = [word for word in item.truth if draw.random() > 0.1]
    invented = [draw.choice([word for word in WORDS if word not in item.truth]) for _ in named if draw.random() < 0.3]
    words = [*named, *invented]
    draw.shuffle(words)
    return words, [word for word in words if word in item.truth or draw.random() < 0.3]


@dataclass(frozen=True)
class Simulated:
    """Stands for the record of a run.

    Args:
        systems_told: Margins and captions by system.
        roles: The roles of the systems.
        matched: The stacks that a control belongs to.
    """

    systems_told: Mapping[str, tuple[Margin, Caption]]
    roles: Mapping[str, str]
    matched: Mapping[str, Sequence[str]] = field(default_factory=dict)
    data: Path | None = None

    @property
    def items(self) -> Mapping[str, Sequence[Item]]:
        """The items."""
        return {"planted": Planted().load(None).items}

    @property
    def manifest(self) -> Mapping[str, Any]:
        """What results read of a manifest."""
        described = {
            "name": "planted", "title": "Planted", "arguments": {}, "parser": "ours", "levels": list(LEVELS), "licence": "none",
            "homepage": "", "items": len(self.items["planted"]), "pictures": 120, "unusable_rows": 0, "problems": [],
        }  # fmt: skip
        systems = {
            name: {
                "role": self.roles[name],
                "stack": [],
                "decoding": "greedy",
                "matched": list(self.matched.get(name, ())),
            }
            for name in self.systems_told
        }
        return {
            "model": {"id": "a/b", "class": "C", "config": "c", "weights": "w", "dtype": "float32", "attention": "sdpa"},
            "seed": 0, "batch": 1, "limit": None, "data": None, "systems": systems, "without": [], "versions": {},
            "suites": {"planted": described},
            "hardware": {"device": "cpu", "accelerator": None, "system": "Linux", "machine": "x86_64", "threads": 1},
        }  # fmt: skip

    @property
    def systems(self) -> Sequence[str]:
        """Their names."""
        return tuple(self.systems_told)

    @property
    def suites(self) -> Sequence[str]:
        """The one suite."""
        return ("planted",)

    def read_answers(self, system: str, suite: str) -> list[AnsweredItem]:
        """What the system says."""
        margin, caption = self.systems_told[system]
        answers = []
        for seen in see(self.items[suite]):
            if seen.item.kind == CAPTION:
                answers.append(AnsweredItem(seen.item, caption(seen)))
            else:
                value = margin(seen)
                answers.append(AnsweredItem(seen.item, "Yes" if value > 0 else "No", 1, value))
        return answers

    def costs(self, system: str, suite: str) -> list[Any]:
        """None."""
        return []

    def read_skipped(self, system: str, suite: str) -> Any:
        """No item."""
        return SimpleNamespace(ids=(), reason="")

    def refusal(self, system: str, suite: str) -> None:
        """None."""
