"""MME, the four coarse perception tasks that are used against hallucination: existence, count, position, color.

Fu et al., MME: A Comprehensive Evaluation Benchmark for Multimodal Large Language Models, arXiv 2306.13394.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import ClassVar

import numpy as np

from lvlm_guard.bench.items import AnsweredItem, Item, Level
from lvlm_guard.bench.scoring.intervals import Statistic, Totals
from lvlm_guard.bench.scoring.measures import Counts, Group, Measure
from lvlm_guard.bench.scoring.parsers import COMMON, Parser, lmms_eval_mme, named, official_mme
from lvlm_guard.bench.suite import Loaded, Problem, Required
from lvlm_guard.bench.suites.arguments import is_text
from lvlm_guard.bench.suites.files import FileRow, Read, build_items, join, missing, read_bytes
from lvlm_guard.bench.suites.mme_habits import add_habits
from lvlm_guard.bench.suites.pictures import PictureFiles, PicturesInFolders
from lvlm_guard.bench.suites.yes_no import (
    TRUTHS,
    YES_NO_TOKENS,
    Part,
    habit_measures,
    of_kind,
    of_level,
    right,
    select_yes_no,
    yes_no_measures,
)
from lvlm_guard.errors import InputError
from lvlm_guard.files import is_file

LEVEL_OF: Mapping[str, Level] = {
    "existence": "object",
    "count": "attribute",
    "position": "relation",
    "color": "attribute",
}
_QUESTIONS_OF_A_PICTURE = 2
_SUFFIXES = (".jpg", ".png", ".jpeg")
_QUESTIONS = Required(
    path="{existence,count,position,color}/*.txt",
    what="the questions of MME, one file a picture",
    source="the authors, on request: github.com/BradyFU/Awesome-Multimodal-Large-Language-Models",
    layout="existence/000000006040.txt, or existence/questions_answers_YN/000000006040.txt, with two lines: the question, "
    "a tab, Yes or No",
)
_IMAGES = Required(
    path="{existence,count,position,color}/*.jpg",
    what="the pictures of MME",
    source="the same download as the questions",
    layout="existence/000000006040.jpg beside the questions, or existence/images/000000006040.jpg",
)
_FOLDERS = ("", "MME_Benchmark", "MME_Benchmark_release_version", "MME_Benchmark_release_version/MME_Benchmark")


@dataclass(frozen=True)
class Mme(PicturesInFolders):
    """The hallucination subset of MME: two questions a picture, one to be affirmed and one to be denied.

    A score is accuracy plus acc+ (the share of pictures with both answers right), each times 100: at most 200 a task and
    800 together.

    Args:
        prompt_suffix: Put behind every question; the files' own ends in "Please answer yes or no.".
    """

    prompt_suffix: str = ""

    name: ClassVar[str] = "mme"
    title: ClassVar[str] = "MME, hallucination subset"
    levels: ClassVar[tuple[Level, ...]] = ("object", "attribute", "relation")
    licence: ClassVar[str] = "research only"
    homepage: ClassVar[str] = "https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models"
    pictures: ClassVar[PictureFiles] = PictureFiles("mme", _IMAGES, _FOLDERS)
    required: ClassVar[tuple[Required, ...]] = (_QUESTIONS, _IMAGES)
    parsers: ClassVar[tuple[str, ...]] = ("official", *COMMON)

    def __post_init__(self) -> None:
        """Check the arguments."""
        is_text(self.name, "prompt_suffix", self.prompt_suffix)

    def load(self, data: Path | None) -> Loaded:
        """Read the questions of all four tasks, by task and file name."""
        parts = [part for kind in LEVEL_OF for part in self._task(data, kind)]
        if not any(part.items for part in parts):
            raise missing(self.name, data, _QUESTIONS)
        loaded = join(parts)
        return Loaded(add_habits(loaded.items), loaded.problems)

    def _task(self, data: Path | None, kind: str) -> Iterator[Loaded]:
        if data is None:
            raise missing(self.name, data, _QUESTIONS)
        for root in (data / folder / kind for folder in _FOLDERS):
            files = sorted(chain(root.glob("*.txt"), root.glob("questions_answers_YN/*.txt")))
            if files:
                yield from (self._picture_of(path, kind, root) for path in files)
                return

    def _picture_of(self, path: Path, kind: str, root: Path) -> Loaded:
        """Build the questions about one picture; a file without a usable line is a problem, and stops nothing."""
        image = _beside(path, kind, root)

        def item(row: FileRow) -> list[Item]:
            return [
                Item(
                    id=f"{kind}/{path.stem}/{row.line}",
                    image=image,
                    prompt=row.text("question") + self.prompt_suffix,
                    truth=row.word("answer", TRUTHS),
                    level=LEVEL_OF[kind],
                    kind=kind,
                    max_new_tokens=YES_NO_TOKENS,
                )
            ]

        try:
            return build_items(_read(path, kind), _QUESTIONS, item)
        except InputError as error:
            return Loaded((), (Problem(f"{kind}/{path.name}", 0, str(error)),))

    def measures(self, parser: str) -> Sequence[Measure]:
        """Return the summed score (0 to 800), the score of each task (0 to 200), then what all yes/no suites have."""
        answer = _parser(parser)
        parts = [Part("all"), *(Part(level, kind, of_kind(kind)) for kind, level in LEVEL_OF.items())]
        rest = [measure for part in parts for measure in yes_no_measures(answer, part)]
        levels = [Part(level, level, of_level(level)) for level in dict.fromkeys(LEVEL_OF.values())]
        by_habit = [measure for part in [Part("all"), *levels] for measure in habit_measures(answer, part)]
        return [_total(answer), *(_score(kind, answer) for kind in LEVEL_OF), *rest, *by_habit]

    def official(self, answers: Sequence[AnsweredItem], parser: str) -> Mapping[str, float | None]:
        """Score of each task and their sum.

        None where a picture has not exactly two answers, on which the tool stops.
        """
        answer = _parser(parser)
        scores = {
            kind: _official_score(
                [answered for answered in select_yes_no(answers) if answered.item.kind == kind], answer
            )
            for kind in LEVEL_OF
        }
        defined = [score for score in scores.values() if score is not None]
        return {**scores, "total": sum(defined) if len(defined) == len(LEVEL_OF) else None}


def _parser(name: str) -> Parser:
    return named(Mme.name, {"official": official_mme, **COMMON, "lmms_eval": lmms_eval_mme}, name)


def _beside(path: Path, kind: str, root: Path) -> str:
    """Return the name of the picture that belongs to a file of questions; that of a .jpg where there is none yet."""
    folder = "images" if path.parent != root else "."
    names = [Path(kind, folder, path.stem + suffix) for suffix in _SUFFIXES]
    return next((name for name in names if is_file(root.parent / name)), names[0]).as_posix()


def _read(path: Path, kind: str) -> Read:
    """Return the lines of a file; question and answer are parted by a tab."""
    file, rows, problems = f"{kind}/{path.name}", [], []
    for number, line in enumerate(read_bytes(path).split(b"\n"), 1):
        try:
            question, _, truth = line.decode("utf-8").strip().rpartition("\t")
        except UnicodeDecodeError as error:
            problems.append(Problem(file, number, f"not UTF-8: {error.reason}"))
            continue
        if question or truth:
            rows.append(FileRow(file, number, {"question": question, "answer": truth}))
    return Read(path, rows, problems)


def _official_score(answers: Sequence[AnsweredItem], answer: Parser) -> float | None:
    pictures: dict[str | None, list[bool]] = {}
    for answered in answers:
        pictures.setdefault(answered.item.image, []).append(right(answered, answer))
    if not pictures or any(len(both) != _QUESTIONS_OF_A_PICTURE for both in pictures.values()):
        return None
    accuracy = sum(map(sum, pictures.values())) / len(answers)
    return 100 * accuracy + 100 * sum(map(all, pictures.values())) / len(pictures)


def _picture_counts(group: Group, kind: str, answer: Parser) -> Counts:
    """Count right answers, answers, whether all are right, and one picture; zeros for a picture of another task."""
    if group[0].item.kind != kind:
        return (0.0, 0.0, 0.0, 0.0)
    results = [right(answered, answer) for answered in group]
    return (float(sum(results)), float(len(results)), float(all(results)), 1.0)


def _of_task(place: int) -> Statistic:
    def score(totals: Totals) -> Totals:
        good, answered, both, pictures = (totals[..., 4 * place + at] for at in range(4))
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(100 * good / answered + 100 * both / pictures)

    return score


def _all_tasks(totals: Totals) -> Totals:
    return np.asarray(sum(_of_task(place)(totals) for place in range(len(LEVEL_OF))))


def _score(kind: str, answer: Parser) -> Measure:
    def count(group: Group) -> Counts | None:
        return _picture_counts(group, kind, answer) if group[0].item.kind == kind else None

    title = f"accuracy plus acc+, {kind}"
    return Measure(f"score_{kind}", LEVEL_OF[kind], title, count, _of_task(0), group=_of_picture)


def _total(answer: Parser) -> Measure:
    def count(group: Group) -> Counts | None:
        return tuple(chain.from_iterable(_picture_counts(group, kind, answer) for kind in LEVEL_OF))

    return Measure("score", "all", "accuracy plus acc+, four tasks summed", count, _all_tasks, group=_of_picture)


def _of_picture(item: Item) -> str:
    return item.image or item.id
