"""The drawn scenes as a benchmark: complete, offline, with an exactly known truth at all three levels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

from PIL import Image

from lvlm_guard.bench.items import LEVELS, AnsweredItem, Item, Level
from lvlm_guard.bench.scoring.intervals import (
    Statistic,
    accuracy,
    f1,
    harmonic_share,
    mean_share,
    share,
    yes_no_counts,
    yes_ratio,
)
from lvlm_guard.bench.scoring.measures import Counts, Measure, each
from lvlm_guard.bench.scoring.scores import parse_yes_no
from lvlm_guard.bench.suite import Loaded, Required
from lvlm_guard.errors import InputError, nearest
from lvlm_guard.testbed.evaluate import CAPTION_TOKENS, SHORT_TOKENS, Answer, caption_colours, caption_counts, is_right
from lvlm_guard.testbed.world.language import DESCRIBE, NAMED, caption, mentions
from lvlm_guard.testbed.world.questions import NEGATIVES, Question, scored_questions
from lvlm_guard.testbed.world.scenes import Scene, scene, scenes

CAPTION = "caption"
PARSER = "ours"
Count = Callable[[Answer], Counts]
Choice = Callable[[Answer], bool]


@dataclass(frozen=True)
class Scenes:
    """Questions about drawn scenes, and captions of them. Figures say nothing about other models than the one they are of.

    Scenes that break the habit of a relation are not captioned, since captions name no places. A caption is an item of
    level "object"; the colours in it are measured at level "attribute". `extra` of an item holds `negative`, `habit` and
    `broken`, as `Question` and `Scene` explain them.

    Args:
        split: "counterfactual", where every scene breaks one habit, or "iid", where none does.
        count: Scenes.
        seed: The same seed draws the same scenes.
        captions: At most so many captions; None captions all scenes that can be, 0 none.
        asked: Questions are put about so many scenes, the first ones; None asks about all.

    Raises:
        InputError: A split, count, seed, number of captions or of scenes asked about that there cannot be.
    """

    name: ClassVar[str] = "scenes"
    title: ClassVar[str] = "Drawn scenes of the testbed"
    levels: ClassVar[tuple[Level, ...]] = LEVELS
    licence: ClassVar[str] = "Apache-2.0, drawn on demand"
    homepage: ClassVar[str] = ""
    required: ClassVar[tuple[Required, ...]] = ()
    parsers: ClassVar[tuple[str, ...]] = (PARSER,)

    split: Literal["counterfactual", "iid"] = "counterfactual"
    count: int = 60
    seed: int = 0
    captions: int | None = None
    asked: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        if self.split not in ("counterfactual", "iid"):
            raise InputError(f"scenes: no split named {self.split!r}.{nearest(self.split, ('counterfactual', 'iid'))}")
        if self.count < 1 or self.seed < 0 or min(self.captions or 0, self.asked or 0) < 0:
            raise InputError(
                f"scenes: count must be at least 1, seed, captions and asked not negative; got count {self.count}, seed "
                f"{self.seed}, captions {self.captions}, asked {self.asked}."
            )

    def load(self, data: Path | None) -> Loaded:  # noqa: ARG002 - a suite is asked with a folder, this one needs none
        """Items of all scenes, scene after scene."""
        told = 0
        items: list[Item] = []
        for place, one in enumerate(scenes(self.split, self.count, self.seed)):
            if self.asked is None or place < self.asked:
                items += [_item(one, number, asked) for number, asked in enumerate(scored_questions(one))]
            can_be_told = one.broken is None or one.broken.level != "relation"
            if can_be_told and (self.captions is None or told < self.captions):
                items.append(_caption(one))
                told += 1
        return Loaded(items)

    def picture(self, data: Path | None, image: str) -> Image.Image:  # noqa: ARG002 - as above
        """The scene of this name, drawn: RGB, 64x64."""
        split, seed, index = image.rsplit("-", 2)
        return scene(split, int(index), int(seed)).picture

    def measures(self, parser: str) -> Sequence[Measure]:
        """What is measured, balanced accuracy for objects first.

        Raises:
            InputError: A parser that there is not.
        """
        if parser not in self.parsers:
            raise InputError(f"scenes: no parser is called {parser!r}.{nearest(parser, self.parsers)}")
        return (*_of_objects(), *_of_captions(), *_of_attributes(), *_of_relations(), *_of_all())

    def invented(self, item: Item, text: str) -> tuple[tuple[int, int], ...]:
        """Where a caption names an object that is not in the picture, its colour included; nothing in short answers."""
        if item.kind != CAPTION:
            return ()
        present = {category for _, category in mentions(item.truth)}
        return tuple(one.span() for one in NAMED.finditer(text) if one[1].lower() not in present)

    def official(self, said: Sequence[AnsweredItem], parser: str) -> Mapping[str, float | None]:  # noqa: ARG002 - no script
        """Nothing: there is no other script than this one."""
        return {}


def _item(one: Scene, number: int, asked: Question) -> Item:
    level: dict[str, Level] = {name: name for name in LEVELS}
    return Item(
        id=f"{one.name}/{number}",
        image=one.name,
        prompt=asked.text,
        truth=asked.answer,
        level=level[asked.level],
        kind=asked.kind,
        max_new_tokens=SHORT_TOKENS,
        extra={"negative": asked.negative, "habit": asked.habit, "broken": _broken(one)},
    )


def _caption(one: Scene) -> Item:
    return Item(
        id=f"{one.name}/{CAPTION}",
        image=one.name,
        prompt=DESCRIBE[0],
        truth=caption(one),
        level="object",
        kind=CAPTION,
        max_new_tokens=CAPTION_TOKENS,
        extra={"negative": None, "habit": None, "broken": _broken(one)},
    )


def _broken(one: Scene) -> str | None:
    return one.broken.level if one.broken else None


def _measure(
    name: str,
    level: str,
    title: str,
    chosen: Choice,
    count: Count,
    statistic: Statistic = share,
    *,
    higher_is_better: bool | None = True,
) -> Measure:
    """A measure over the answers of single items, as the testbed itself reads them."""

    def counted(said: AnsweredItem) -> Counts | None:
        answer = _answer(said)
        return count(answer) if chosen(answer) else None

    return Measure(
        name, level, title, each(counted), statistic, higher_is_better, binary=count in (_right, _spoilt, _unread)
    )


def _answer(said: AnsweredItem) -> Answer:
    """What was said in the testbed's own words."""
    item = said.item
    return Answer(
        scene=item.image or "",
        split="",
        level=CAPTION if item.kind == CAPTION else item.level,
        kind=item.kind,
        prompt=item.prompt,
        truth=item.truth,
        text=said.text.strip(),
        **item.extra,
    )


def _of_objects() -> list[Measure]:
    asked = partial(_is_yes_no, "object")
    kinds = [
        _measure(f"balanced_{kind}", "object", f"balanced accuracy, {kind} negatives", partial(_asks, kind), *_BALANCED)
        for kind in NEGATIVES
    ]
    return [
        _measure("balanced_object", "object", "balanced accuracy", asked, *_BALANCED),
        *kinds,
        _measure("f1_object", "object", "F1", asked, _yes_no, f1),
        _measure("harmonic_object", "object", "harmonic mean of both recalls", asked, _yes_no, harmonic_share),
        _measure("yes_ratio_object", "object", "share of yes", asked, _yes_no, yes_ratio, higher_is_better=None),
    ]


def _of_captions() -> list[Measure]:
    told = partial(_tells, "object")
    return [
        _measure("chair_i", "object", "named objects that are absent", told, _absent, higher_is_better=False),
        _measure("chair_s", "object", "captions with an absent object", told, _spoilt, higher_is_better=False),
        _measure("recall", "object", "present objects that are named", told, _found),
        _measure("length", "object", "words and marks of a caption", told, _words, higher_is_better=None),
    ]


def _of_attributes() -> list[Measure]:
    coloured = partial(_tells, "attribute")
    return [
        _measure("accuracy_attribute", "attribute", "accuracy", partial(_has_level, "attribute"), _right),
        *_yes_no_measures("attribute"),
        _measure(
            "miscoloured",
            "attribute",
            "named objects in a wrong colour",
            coloured,
            _miscoloured,
            higher_is_better=False,
        ),
    ]


def _of_relations() -> list[Measure]:
    return [
        _measure("accuracy_relation", "relation", "accuracy, left or right", _asks_sideways, _right),
        *_yes_no_measures("relation"),
        _measure("accuracy_vertical", "relation", "accuracy, above or below (no habit)", _asks_upwards, _right),
    ]


def _yes_no_measures(level: str) -> list[Measure]:
    asked = partial(_is_yes_no, level)
    return [
        _measure(f"balanced_{level}", level, "balanced accuracy of yes and no", asked, *_BALANCED),
        _measure(f"f1_{level}", level, "F1 of yes and no", asked, _yes_no, f1),
        _measure(f"harmonic_{level}", level, "harmonic mean of both recalls", asked, _yes_no, harmonic_share),
        _measure(f"yes_ratio_{level}", level, "share of yes", asked, _yes_no, yes_ratio, higher_is_better=None),
    ]


def _of_all() -> list[Measure]:
    asked = partial(_is_yes_no, None)
    return [
        _measure("accuracy", "all", "accuracy of yes and no", asked, _yes_no, accuracy),
        _measure("f1", "all", "F1", asked, _yes_no, f1),
        _measure("harmonic", "all", "harmonic mean of both recalls", asked, _yes_no, harmonic_share),
        _measure("yes_ratio", "all", "share of yes", asked, _yes_no, yes_ratio, higher_is_better=None),
        _measure("unread", "all", "neither yes nor no", asked, _unread, higher_is_better=False),
    ]


def _has_level(level: str, answer: Answer) -> bool:
    return answer.level == level


def _is_yes_no(level: str | None, answer: Answer) -> bool:
    return answer.truth in ("yes", "no") and level in (None, answer.level)


def _asks(negative: str, answer: Answer) -> bool:
    return answer.kind == "existence" and (answer.truth == "yes" or answer.negative == negative)


def _asks_sideways(answer: Answer) -> bool:
    return answer.kind in ("relation", "choice")


def _asks_upwards(answer: Answer) -> bool:
    return answer.kind == "vertical"


def _tells(level: str, answer: Answer) -> bool:
    """Whether it is a caption of a scene that breaks a habit of this level, or none."""
    return answer.level == CAPTION and answer.broken in (None, level)


def _yes_no(answer: Answer) -> Counts:
    """(right yes, all yes, right no, all no, said yes)."""
    row = yes_no_counts([parse_yes_no(answer.text)], [answer.truth == "yes"])[0]
    return tuple(float(one) for one in row)


_BALANCED: tuple[Count, Statistic] = (_yes_no, mean_share)


def _unread(answer: Answer) -> Counts:
    return float(parse_yes_no(answer.text) is None), 1.0


def _right(answer: Answer) -> Counts:
    return float(is_right(answer)), 1.0


def _absent(answer: Answer) -> Counts:
    counts = caption_counts(answer)
    return float(counts.absent), float(counts.named)


def _spoilt(answer: Answer) -> Counts:
    return float(caption_counts(answer).absent > 0), 1.0


def _found(answer: Answer) -> Counts:
    counts = caption_counts(answer)
    return float(counts.found), float(counts.present)


def _words(answer: Answer) -> Counts:
    return float(caption_counts(answer).words), 1.0


def _miscoloured(answer: Answer) -> Counts:
    counts = caption_colours(answer)
    return float(counts.wrong), float(counts.coloured)
