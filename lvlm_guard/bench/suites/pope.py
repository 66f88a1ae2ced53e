"""POPE: is an object in the image? Half the answers are no, with absent objects at random, frequent or likely to co-occur.

Li et al., Evaluating Object Hallucination in Large Vision-Language Models (EMNLP 2023), arXiv 2305.10355.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lvlm_guard.bench.items import AnsweredItem, Item, Level
from lvlm_guard.bench.scoring.measures import Measure
from lvlm_guard.bench.scoring.parsers import COMMON, Parser, named, official_pope
from lvlm_guard.bench.suite import Loaded, Required
from lvlm_guard.bench.suites.arguments import is_text, one_of
from lvlm_guard.bench.suites.files import FileRow, build_items, join, missing, read_rows
from lvlm_guard.bench.suites.habits import ObjectHabits, add_habit
from lvlm_guard.bench.suites.pictures import PictureFiles, PicturesInFolders
from lvlm_guard.bench.suites.yes_no import (
    TRUTHS,
    YES_NO_TOKENS,
    Part,
    habit_measures,
    of_kind,
    select_yes_no,
    yes_no_measures,
)
from lvlm_guard.errors import InputError
from lvlm_guard.files import is_folder

KINDS = ("random", "popular", "adversarial")
SOURCES = ("coco", "aokvqa", "gqa")
_FIGURES = ("accuracy", "precision", "recall", "f1", "yes_ratio")
_QUESTIONS = Required(
    path="{coco,aokvqa,gqa}_pope*.json",
    what="the questions of POPE",
    source="github.com/RUCAIBox/POPE, output/coco or output/seem",
    layout='one object a line or an array of objects: {"question_id": 1, "image": "COCO_val2014_000000310196.jpg", '
    '"text": "Is there a snowboard in the image?", "label": "yes"}; random, popular or adversarial is in the file name',
)
_IMAGES = Required(
    path="val2014/*.jpg",
    what="the pictures that the questions name",
    source="cocodataset.org, 2014 validation images (for gqa, cs.stanford.edu/people/dorarad/gqa)",
    layout="val2014/COCO_val2014_000000310196.jpg",
)
_OBJECT = re.compile(r"(?:is|are) there (?:an?|any|some) (.+?) in the (?:image|picture|photo)", re.IGNORECASE)


@dataclass(frozen=True)
class Pope(PicturesInFolders):
    """POPE in its three file shapes: JSON Lines named .json (coco), JSON arrays (aokvqa, gqa), and .jsonl copies.

    The prompt is the file's. Copies differ in length (3000 official rows a kind; 2910 random ones in those of LLaVA), so
    `official` tells n per kind. The habit of a question is that of its object in the company of the others that the files know
    in its picture, over the pictures of all files that are there.

    Args:
        source: Whose images are asked about: coco, aokvqa or gqa.
        files: A glob below the data folder instead of `**/{source}_pope*{kind}*.json*`.
        prompt_suffix: Put behind every question, such as " Please answer this question with one word.".
    """

    source: str = "coco"
    files: str = ""
    prompt_suffix: str = ""

    name: ClassVar[str] = "pope"
    title: ClassVar[str] = "POPE"
    levels: ClassVar[tuple[Level, ...]] = ("object",)
    licence: ClassVar[str] = "MIT; images under the terms of COCO, A-OKVQA and GQA"
    homepage: ClassVar[str] = "https://github.com/RUCAIBox/POPE"
    pictures: ClassVar[PictureFiles] = PictureFiles("pope", _IMAGES, ("val2014", "images/val2014", "images", ""))
    required: ClassVar[tuple[Required, ...]] = (_QUESTIONS, _IMAGES)
    parsers: ClassVar[tuple[str, ...]] = ("official", *COMMON)

    def __post_init__(self) -> None:
        """Check the arguments."""
        one_of(self.name, "source", self.source, SOURCES)
        is_text(self.name, "files", self.files)
        is_text(self.name, "prompt_suffix", self.prompt_suffix)

    def load(self, data: Path | None) -> Loaded:
        """Read the questions of every kind that is there."""
        places = {kind: path for kind in KINDS if (path := self._place(data, kind)) is not None}
        if not places:
            raise missing(self.name, data, _QUESTIONS)
        loaded = join(self._read(kind, path) for kind, path in places.items())
        return Loaded(_with_habits(loaded.items), loaded.problems)

    def _place(self, data: Path | None, kind: str) -> Path | None:
        """Find the one file of a kind; its name may end in .json or .jsonl."""
        if data is None:
            raise missing(self.name, data, _QUESTIONS)
        pattern = self.files or f"**/{self.source}_pope*{kind}*.json*"
        if ".." in Path(pattern).parts:
            raise InputError(f"{self.name}: files={pattern!r} leads out of the data folder.")
        try:
            matching = sorted(data.glob(pattern))
        except (ValueError, NotImplementedError, IndexError) as error:
            raise InputError(f"{self.name}: files={pattern!r} is no glob below the data folder: {error}.") from error
        named_so = [path for path in matching if kind in path.name]
        fitting = [path for path in named_so if not is_folder(path)] or named_so[:1]
        if len(fitting) > 1:
            names = ", ".join(path.relative_to(data).as_posix() for path in fitting)
            raise InputError(
                f"{self.name}: several files hold the {kind} questions: {names}. Name one kind of them by files=."
            )
        return fitting[0] if fitting else None

    def _read(self, kind: str, path: Path) -> Loaded:
        def item(row: FileRow) -> list[Item]:
            return [
                Item(
                    id=f"{kind}:{row.name('question_id')}",
                    image=row.picture("image"),
                    prompt=row.text("text") + self.prompt_suffix,
                    truth=row.word("label", TRUTHS),
                    level="object",
                    kind=kind,
                    max_new_tokens=YES_NO_TOKENS,
                )
            ]

        return build_items(read_rows(path), _QUESTIONS, item)

    def measures(self, parser: str) -> Sequence[Measure]:
        """Return accuracy first; every measure over all kinds, then for each, those by habit last."""
        answer = _parser(parser)
        kinds = [Part("object", kind, of_kind(kind)) for kind in KINDS]
        every = [measure for part in [Part("object"), *kinds] for measure in yes_no_measures(answer, part)]
        by_habit = [measure for part in [Part("object", "object"), *kinds] for measure in habit_measures(answer, part)]
        return [*every, *by_habit]

    def official(self, answers: Sequence[AnsweredItem], parser: str) -> Mapping[str, float | None]:
        """Return what the script of the parser's owner prints for each kind, and n.

        `official` and `ours` go through POPE's script, which divides without a guard: where it fails, all its figures are
        None. `lmms_eval` has a recall that leaves answers out which are neither, and a yes-ratio of the truth. `vlmevalkit`
        gives percent. Accuracy is the share of right answers in all three.
        """
        answer, script = _parser(parser), _SCRIPTS.get(parser, _pope)
        figures: dict[str, float | None] = {}
        for kind in KINDS:
            pairs = [
                (answer(answered.text), answered.item.truth == "yes")
                for answered in select_yes_no(answers)
                if answered.item.kind == kind
            ]
            if pairs:
                printed = dict(zip(_FIGURES, script(pairs), strict=True))
                figures |= {f"{kind}/{name}": value for name, value in printed.items()}
                figures[f"{kind}/n"] = len(pairs)
        return figures


Pairs = Sequence[tuple[bool | None, bool]]


def _with_habits(items: Sequence[Item]) -> tuple[Item, ...]:
    """Add the habit of each question; None where its object cannot be read."""
    objects = {item.id: match[1].lower() for item in items if (match := _OBJECT.match(item.prompt))}
    present: dict[str, set[str]] = {str(item.image): set() for item in items}
    for item in items:
        if item.id in objects and item.truth == "yes":
            present[str(item.image)].add(objects[item.id])
    habits = ObjectHabits(present, [(str(item.image), objects[item.id]) for item in items if item.id in objects])
    return tuple(
        add_habit(item, habits.habit(str(item.image), objects[item.id]) if item.id in objects else None)
        for item in items
    )


def _parser(name: str) -> Parser:
    return named(Pope.name, {"official": official_pope, **COMMON}, name)


def _pope(pairs: Pairs) -> tuple[float | None, ...]:
    hits, yeses = sum(verdict is True and true for verdict, true in pairs), sum(verdict is True for verdict, _ in pairs)
    positives, right = sum(true for _, true in pairs), sum(verdict is true for verdict, true in pairs)
    try:
        precision, recall = hits / yeses, hits / positives
        f1 = 2 * precision * recall / (precision + recall)
    except ZeroDivisionError:
        return (None,) * len(_FIGURES)
    return right / len(pairs), precision, recall, f1, yeses / len(pairs)


def _lmms_eval(pairs: Pairs) -> tuple[float | None, ...]:
    hits, yeses = sum(verdict is True and true for verdict, true in pairs), sum(verdict is True for verdict, _ in pairs)
    positives = sum(true for _, true in pairs)
    misses, right = (
        sum(verdict is False and true for verdict, true in pairs),
        sum(verdict is true for verdict, true in pairs),
    )
    precision, recall = _guarded(hits, yeses), _guarded(hits, hits + misses)
    f1 = _guarded(2 * precision * recall, precision + recall)
    return right / len(pairs), precision, recall, f1, positives / len(pairs)


def _vlmevalkit(pairs: Pairs) -> tuple[float | None, ...]:
    hits, yeses = sum(verdict is True and true for verdict, true in pairs), sum(verdict is True for verdict, _ in pairs)
    positives, right = sum(true for _, true in pairs), sum(verdict is true for verdict, true in pairs)
    precision, recall = _guarded(hits, yeses), _guarded(hits, positives)
    f1 = _guarded(2 * precision * recall, precision + recall)
    return 100 * right / len(pairs), 100 * precision, 100 * recall, 100 * f1, None


def _guarded(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


_SCRIPTS = {"lmms_eval": _lmms_eval, "vlmevalkit": _vlmevalkit}
