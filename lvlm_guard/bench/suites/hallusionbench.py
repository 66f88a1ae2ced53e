"""HallusionBench: yes/no questions on edited and misleading figures, with and without them, scored question by question and in groups.

Guan et al., HallusionBench (CVPR 2024), arXiv 2310.14566. The official grader is a language model; here answers are read as yes or no.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lvlm_guard.bench.items import AnsweredItem, Item, Level
from lvlm_guard.bench.scoring.measures import Counts, Group, Measure
from lvlm_guard.bench.scoring.parsers import COMMON, Parser, named
from lvlm_guard.bench.suite import Loaded, Required
from lvlm_guard.bench.suites import hallusionbench_causes
from lvlm_guard.bench.suites.arguments import at_least, is_switch, is_text
from lvlm_guard.bench.suites.files import BadRow, FileRow, build_items, check_picture_name, find_file, read_rows
from lvlm_guard.bench.suites.pictures import PictureFiles, PicturesInFolders
from lvlm_guard.bench.suites.yes_no import Part, of_kind, select_yes_no, yes_no_measures

KINDS = ("VD", "VS")
_RELATIONS = ("video", "map")
_ROWS = Required(
    path="HallusionBench.json",
    what="the questions of HallusionBench",
    source="github.com/tianyi-lab/HallusionBench",
    layout='an array of objects: {"category": "VD", "subcategory": "illusion", "visual_input": "1", "set_id": "0", '
    '"figure_id": "0", "question_id": "0", "question": "Is ...?", "gt_answer": "1", '
    '"filename": "./hallusion_bench/VD/illusion/0_0.png" or null}',
)
_IMAGES = Required(
    path="hallusion_bench/*/*/*.png",
    what="the pictures of HallusionBench",
    source="the download named on the page of the repository",
    layout="hallusion_bench/VD/illusion/0_0.png",
)


@dataclass(frozen=True)
class HallusionBench(PicturesInFolders):
    """HallusionBench read by rule: aAcc per question, qAcc per question over all its figures, fAcc per figure, causes of failure.

    The file names no level: questions on videos and maps (the order of events, where places lie) count as relations, all
    others as attributes.

    Args:
        text_only: Whether rows without a figure are asked too; VLMEvalKit leaves them out.
        prompt_suffix: Put behind every question, such as " Please answer yes or no.".
        max_new_tokens: Length of an answer; the questions do not ask for a short one.
    """

    text_only: bool = True
    prompt_suffix: str = ""
    max_new_tokens: int = 64

    name: ClassVar[str] = "hallusionbench"
    title: ClassVar[str] = "HallusionBench"
    levels: ClassVar[tuple[Level, ...]] = ("attribute", "relation")
    licence: ClassVar[str] = "BSD-3-Clause"
    homepage: ClassVar[str] = "https://github.com/tianyi-lab/HallusionBench"
    pictures: ClassVar[PictureFiles] = PictureFiles("hallusionbench", _IMAGES, ("", "hallusion_bench", "images"))
    required: ClassVar[tuple[Required, ...]] = (_ROWS, _IMAGES)
    parsers: ClassVar[tuple[str, ...]] = ("ours", "vlmevalkit", "lmms_eval")

    def __post_init__(self) -> None:
        """Check the arguments."""
        is_switch(self.name, "text_only", self.text_only)
        is_text(self.name, "prompt_suffix", self.prompt_suffix)
        at_least(self.name, "max_new_tokens", self.max_new_tokens, 1)

    def load(self, data: Path | None) -> Loaded:
        """Read all rows; those without a figure where they are wanted."""
        return build_items(read_rows(find_file(self.name, data, _ROWS)), _ROWS, self._items)

    def _items(self, row: FileRow) -> list[Item]:
        part = {key: row.name(key) for key in ("category", "subcategory", "set_id", "figure_id", "question_id")}
        if part["category"] not in KINDS:
            raise BadRow(f"'category' should be VD or VS, and is {part['category']!r}")
        visual = row.word("visual_input", ("0", "1", "2"))
        has_figure = visual != "0"
        question = [part[key] for key in ("category", "subcategory", "set_id", "question_id")]
        figure = [part[key] for key in ("category", "subcategory", "set_id", "figure_id")]
        if not has_figure and not self.text_only:
            return []
        return [
            Item(
                id="/".join([*figure, part["question_id"]]),
                image=_figure(row) if has_figure else None,
                prompt=row.text("question") + self.prompt_suffix,
                truth="yes" if row.word("gt_answer", ("0", "1")) == "1" else "no",
                level="relation" if part["subcategory"] in _RELATIONS else "attribute",
                kind=part["category"],
                max_new_tokens=self.max_new_tokens,
                cluster="/".join(question[:3]),
                extra={
                    "question": "/".join(question),
                    "figure": "/".join(figure),
                    "figure_id": part["figure_id"],
                    "visual_input": visual,
                },
            )
        ]

    def measures(self, parser: str) -> Sequence[Measure]:
        """Return accuracy per question (aAcc) first, then per question group and figure, then the rest.

        Over all and by category.
        """
        answer = _parser(parser)
        parts = [Part("all"), *(Part("all", kind, of_kind(kind)) for kind in KINDS)]
        every = [measure for part in parts for measure in yes_no_measures(answer, part)]
        return [every[0], _grouped("question", answer), _grouped("figure", answer), *every[1:]]

    def official(self, answers: Sequence[AnsweredItem], parser: str) -> Mapping[str, float | None]:
        """Return the figures of the official leaderboard, percent to four places; None where nothing was asked.

        The grades are ours (right, wrong, unclear); the arithmetic is the script's: unclear counts as right where there is
        no figure to a question that one would supplement. Two definitions have two readings, and both are given:

        * Easy and hard, grouped as for qAcc. `script/`: hard rows are those with an edited figure (`visual_input` 2).
          `paper/`, as the repository's page words it: hard rows are those with another figure than the first, so that a
          question which a figure supplements is easy only without one.
        * LH, VI, Mixed: why answers failed (`hallusionbench_causes`). `script/`: shares of the failed answers, which the
          script prints. `paper/`: shares of the failed groups of qAcc, which it counts as well and does not print.
        """
        answer, questions = _parser(parser), select_yes_no(answers)
        figures = [answered for answered in questions if not _without_figure(answered.item)]
        return {
            "aAcc": _all_right(questions, lambda item: item.id, answer),
            "qAcc": _all_right(questions, _named("question"), answer),
            "fAcc": _all_right(figures, _named("figure"), answer),
            **_by_difficulty("script", questions, _is_edited, answer),
            **_by_difficulty("paper", questions, _is_later_figure, answer),
            **_prefixed("script", hallusionbench_causes.shares_of_answers(questions, answer)),
            **_prefixed("paper", hallusionbench_causes.shares_of_groups(questions, answer)),
        }


def _figure(row: FileRow) -> str:
    return check_picture_name(row.text("filename").removeprefix("./").removeprefix("hallusion_bench/"))


def _parser(name: str) -> Parser:
    parsers = {parser: COMMON[parser] for parser in HallusionBench.parsers}
    return named(HallusionBench.name, parsers, name)


def _named(key: str) -> Callable[[Item], str]:
    return lambda item: str(item.extra[key])


def _without_figure(item: Item) -> bool:
    return item.kind == "VS" and item.extra["figure_id"] == "0"


def _is_edited(item: Item) -> bool:
    return bool(item.extra["visual_input"] == hallusionbench_causes.AGAINST_COMMON_SENSE)


def _is_later_figure(item: Item) -> bool:
    return bool(item.extra["figure_id"] != hallusionbench_causes.ORIGINAL)


def _by_difficulty(
    reading: str, answers: Sequence[AnsweredItem], is_hard: Callable[[Item], bool], answer: Parser
) -> dict[str, float | None]:
    """Return the share of question groups that are all right, among easy and among hard rows."""
    parts = {"easy": False, "hard": True}
    return _prefixed(
        reading,
        {
            name: _all_right(
                [answered for answered in answers if is_hard(answered.item) is hard], _named("question"), answer
            )
            for name, hard in parts.items()
        },
    )


def _prefixed(reading: str, figures: Mapping[str, float | None]) -> dict[str, float | None]:
    return {f"{reading}/{name}": value for name, value in figures.items()}


def _is_right(answered: AnsweredItem, answer: Parser) -> bool:
    reading = answer(answered.text)
    return _without_figure(answered.item) if reading is None else reading is (answered.item.truth == "yes")


def _all_right(answers: Sequence[AnsweredItem], group: Callable[[Item], str], answer: Parser) -> float | None:
    """Return the percentage of groups whose every answer is right."""
    groups: dict[str, bool] = {}
    for answered in answers:
        groups[group(answered.item)] = groups.get(group(answered.item), True) and _is_right(answered, answer)
    return round(100 * sum(groups.values()) / len(groups), 4) if groups else None


def _grouped(key: str, answer: Parser) -> Measure:
    """Measure the share of groups whose every answer is right.

    Figures leave out questions without one, as the script does.
    """

    def count(group: Group) -> Counts | None:
        if key == "figure" and _without_figure(group[0].item):
            return None
        return (float(all(_is_right(answered, answer) for answered in group)), 1.0)

    return Measure(f"{key}_accuracy", "all", f"{key}s with every answer right", count, group=_named(key), binary=True)
