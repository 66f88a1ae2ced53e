"""Reefknot: relations between two things in Visual Genome images, as yes/no questions, as a choice of four, and freely.

Zheng et al., Reefknot: A Comprehensive Benchmark for Relation Hallucination Evaluation, Analysis and Mitigation in Multimodal
Large Language Models (2024), arXiv 2408.09429. Official figures follow `RLC-bench/neok_code/utils.py` of its repository.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lvlm_guard.bench.files import write_whole
from lvlm_guard.bench.items import AnsweredItem, Item, Level
from lvlm_guard.bench.scoring.measures import Counts, Group, Measure, each
from lvlm_guard.bench.scoring.parsers import COMMON, Parser, named, official_reefknot, official_reefknot_second
from lvlm_guard.bench.suite import Loaded, Required
from lvlm_guard.bench.suites.arguments import one_of
from lvlm_guard.bench.suites.files import BadRow, FileRow, build_items, check_picture_name, find_file, join, read_rows
from lvlm_guard.bench.suites.pictures import PictureFiles, PicturesInFolders
from lvlm_guard.bench.suites.yes_no import TRUTHS, YES_NO_TOKENS, Part, right, select_yes_no, yes_no_measures

LETTERS = ("A", "B", "C", "D")
RELATIONS = ("perception", "cognitive")
_FILES = {"yesno": "YESNO.jsonl", "choice": "Multichoice.jsonl", "free": "VQA.jsonl"}
_TYPES = {"yesno": "Yes/No", "choice": "Multichoice", "free": "VQA"}
_PARTS = {"all": ("yesno", "choice"), "yesno": ("yesno",), "choice": ("choice",), "free": ("free",)}
_FREE_TOKENS = 64
_OPTION = re.compile(r"\b([A-D])\.\s*(.*?)\s*(?=\b[A-D]\.|,?\s*(?i:please choose)|$)", re.DOTALL)
_LETTER = re.compile(r"\W*([A-D])(?:[.):,\W]*$|[.):,])", re.IGNORECASE)
_ROWS = {
    task: Required(
        path=file,
        what=f"the {_TYPES[task]} questions of Reefknot",
        source="github.com/JackChen-seu/Reefknot, Dataset",
        layout='one object a line: {"image_id": "1592267", "query_prompt": "Is the bus driver on bus in this photo? ...", '
        f'"label": {label}, "relation_type": "perception"}}; consecutive yes/no rows are a pair',
        optional=task == "free",
    )
    for (task, file), label in zip(_FILES.items(), ('"yes"', '"A"', '"bag is on ground"'), strict=True)
}
_IMAGES = Required(
    path="VG_100K/*.jpg",
    what="the pictures that the questions name",
    source="Visual Genome: homes.cs.washington.edu/~ranjay/visualgenome",
    layout="VG_100K/1592267.jpg or VG_100K_2/1592267.jpg",
)


@dataclass(frozen=True)
class Reefknot(PicturesInFolders):
    """Reefknot: yes/no questions in pairs and choices of four. Free answers (VQA) are not scored: `export` writes them.

    Args:
        part: "all" (yes/no and choice), "yesno", "choice", or "free" for the answers that only get exported.
    """

    part: str = "all"

    name: ClassVar[str] = "reefknot"
    title: ClassVar[str] = "Reefknot"
    levels: ClassVar[tuple[Level, ...]] = ("relation",)
    licence: ClassVar[str] = "none given; images CC-BY-4.0 (Visual Genome)"
    homepage: ClassVar[str] = "https://github.com/JackChen-seu/Reefknot"
    pictures: ClassVar[PictureFiles] = PictureFiles("reefknot", _IMAGES, ("VG_100K", "VG_100K_2", "images", ""))
    required: ClassVar[tuple[Required, ...]] = (*_ROWS.values(), _IMAGES)
    parsers: ClassVar[tuple[str, ...]] = ("ours", "official", "lmms_eval", "vlmevalkit")

    def __post_init__(self) -> None:
        """Check the arguments."""
        one_of(self.name, "part", self.part, _PARTS)

    def load(self, data: Path | None) -> Loaded:
        """Read the files of the part that is wanted, from the data folder or Dataset in it."""
        places = {task: find_file(self.name, data, _ROWS[task], "Dataset") for task in _PARTS[self.part]}
        return join(build_items(read_rows(path), _ROWS[task], _maker(task)) for task, path in places.items())

    def measures(self, parser: str) -> Sequence[Measure]:
        """Return accuracy over both tasks first, then yes/no, pairs, choices.

        By perceptive and cognitive relations too.

        Choices are read by `parse_choice` whatever the parser of yes/no, but `official` takes the first character.
        """
        answer, choose = _parser(parser), _chooser(parser)
        parts = [Part("relation"), *(Part("relation", kind, _relation_is(kind)) for kind in RELATIONS)]
        every = [measure for part in parts for measure in yes_no_measures(answer, part)]
        choices = [_choice(choose, kind) for kind in ("", *RELATIONS)]
        return [_both(answer, choose), *every, _pairs(answer), *choices, _unread_choices(choose)]

    def official(self, answers: Sequence[AnsweredItem], parser: str) -> Mapping[str, float | None]:
        """Return the figures of the scripts in the repository, to the two places that they print.

        They pair yes/no answers by order, the first of a pair asking for yes; `official` reads the second of a pair by
        another rule than the first. None where nothing was asked, where a pair is torn, and where a choice is empty.
        """
        questions = select_yes_no(answers)
        figures = {**_yes_no_figures(questions, parser), **_pair_figures(questions, parser)}
        chosen = [answered for answered in answers if answered.item.extra.get("task") == "choice"]
        choose = _chooser(parser)
        torn = not chosen or (parser == "official" and not all(answered.text for answered in chosen))
        hits = sum(choose(answered) == answered.item.truth for answered in chosen)
        return {**figures, "choice/accuracy": None if torn else round(hits / len(chosen), 2)}

    def export(self, answers: Sequence[AnsweredItem], path: Path) -> None:
        """Write the answers as rows of the official files with `response` filled in, for a judge of free answers.

        Raises:
            InputError: The file cannot be written.
        """
        rows = [
            {
                "image_id": str(answered.item.image).removesuffix(".jpg"),
                "query_prompt": answered.item.prompt,
                "label": answered.item.truth,
                "type": _TYPES[str(answered.item.extra["task"])],
                "mllm_name": "",
                "response": answered.text,
                "relation_type": answered.item.extra["relation"],
            }
            for answered in answers
        ]
        write_whole(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def parse_choice(text: str, options: Mapping[str, str]) -> str | None:
    """Return the letter an answer chooses: one alone or before a mark, else that of the only option it names.

    Args:
        text: The answer.
        options: Letter to text of the options.
    """
    letter = _LETTER.match(text)
    if letter:
        return letter[1].upper()
    lettered = re.match(r"\W*([A-D])\s+(.+)", text, re.DOTALL)
    if lettered and _names(lettered[2], options.get(lettered[1], "")):
        return lettered[1]
    named_ones = [key for key, option in options.items() if _names(text, option)]
    return named_ones[0] if len(named_ones) == 1 else None


def _names(text: str, option: str) -> bool:
    return bool(option) and re.search(rf"\b{re.escape(option.lower())}\b", text.lower()) is not None


def _maker(task: str) -> Callable[[FileRow], list[Item]]:
    def item(row: FileRow) -> list[Item]:
        prompt, relation = row.text("query_prompt"), row.word("relation_type", RELATIONS)
        options = dict(_OPTION.findall(prompt)) if task == "choice" else {}
        if task == "choice" and len(options) != len(LETTERS):
            raise BadRow(f"'query_prompt' should list A. to D., and lists {', '.join(options) or 'none'}")
        return [
            Item(
                id=f"{task}:{row.line}",
                image=check_picture_name(row.name("image_id").removesuffix(".jpg") + ".jpg"),
                prompt=prompt,
                truth=_truth(row, task),
                level="relation",
                kind=task,
                max_new_tokens=_FREE_TOKENS if task == "free" else YES_NO_TOKENS,
                extra={"task": task, "relation": relation, **({"options": options} if options else {})},
            )
        ]

    return item


def _truth(row: FileRow, task: str) -> str:
    if task == "yesno":
        return row.word("label", TRUTHS)
    return row.word("label", ("a", "b", "c", "d")).upper() if task == "choice" else row.text("label")


def _parser(name: str) -> Parser:
    return named(Reefknot.name, {**COMMON, "official": official_reefknot}, name)


Chooser = Callable[[AnsweredItem], str | None]


def _chooser(parser: str) -> Chooser:
    def first_character(answered: AnsweredItem) -> str | None:
        return answered.text[:1].upper() or None

    def parsed(answered: AnsweredItem) -> str | None:
        return parse_choice(answered.text, answered.item.extra["options"])

    return first_character if parser == "official" else parsed


def _relation_is(relation: str) -> Callable[[Item], bool]:
    return lambda item: item.extra.get("relation") == relation


def _is_choice(answered: AnsweredItem, relation: str = "") -> bool:
    return answered.item.extra.get("task") == "choice" and relation in ("", answered.item.extra["relation"])


def _both(answer: Parser, choose: Chooser) -> Measure:
    def count(answered: AnsweredItem) -> Counts | None:
        if _is_choice(answered):
            return (float(choose(answered) == answered.item.truth), 1.0)
        return (float(right(answered, answer)), 1.0) if answered.item.truth in TRUTHS else None

    return Measure("accuracy_all", "relation", "right answers and choices", each(count), binary=True)


def _choice(choose: Chooser, relation: str) -> Measure:
    def count(answered: AnsweredItem) -> Counts | None:
        return (float(choose(answered) == answered.item.truth), 1.0) if _is_choice(answered, relation) else None

    ending = f"_{relation}" if relation else ""
    return Measure(
        f"accuracy_choice{ending}", "relation", f"right choices {relation}".strip(), each(count), binary=True
    )


def _unread_choices(choose: Chooser) -> Measure:
    def count(answered: AnsweredItem) -> Counts | None:
        return (float(choose(answered) not in LETTERS), 1.0) if _is_choice(answered) else None

    title = "choices that name no letter"
    return Measure("unparsed_choice", "relation", title, each(count), higher_is_better=False)


def _pairs(answer: Parser) -> Measure:
    """Return the share of pairs with both answers right; rows 1 and 2 of the file are a pair, 3 and 4, and so on."""

    def pair(item: Item) -> str:
        line = int(item.id.rpartition(":")[2])
        return f"yesno:{(line + 1) // 2}" if item.truth in TRUTHS else item.id

    def count(group: Group) -> Counts | None:
        if {answered.item.truth for answered in group} != set(TRUTHS):
            return None
        return (float(all(right(answered, answer) for answered in group)), 1.0)

    title = "yes/no pairs with both answers right"
    return Measure("pair_accuracy", "relation", title, count, group=pair, binary=True)


def _yes_no_figures(answers: Sequence[AnsweredItem], parser: str) -> dict[str, float | None]:
    answer = _parser(parser)
    if not answers:
        return {"yesno/accuracy": None, "yesno/yes_rate": None}
    hits = sum(right(answered, answer) for answered in answers)
    yeses = sum(answer(answered.text) is True for answered in answers)
    return {"yesno/accuracy": round(hits / len(answers), 2), "yesno/yes_rate": round(yeses / len(answers), 2)}


def _pair_figures(answers: Sequence[AnsweredItem], parser: str) -> dict[str, float | None]:
    first = _parser(parser)
    second = official_reefknot_second if parser == "official" else first
    if not answers or len(answers) % 2:
        return dict.fromkeys(("pair/accuracy_yes", "pair/accuracy_no", "pair/accuracy"))
    of_yes = [right(answered, first) for answered in answers[0::2]]
    of_no = [right(answered, second) for answered in answers[1::2]]
    both = [yes and no for yes, no in zip(of_yes, of_no, strict=True)]
    return {
        "pair/accuracy_yes": round(sum(of_yes) / len(both), 2),
        "pair/accuracy_no": round(sum(of_no) / len(both), 2),
        "pair/accuracy": round(sum(both) / len(both), 2),
    }
