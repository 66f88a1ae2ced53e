"""AMBER: descriptions and yes/no questions on the same 1004 images, at the level of objects, attributes and relations.

Wang et al., AMBER: An LLM-free Multi-dimensional Benchmark for MLLMs Hallucination Evaluation (2023), arXiv 2311.07397.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

from lvlm_guard.bench.files import write_whole
from lvlm_guard.bench.items import AnsweredItem, Item, Level
from lvlm_guard.bench.scoring.measures import Counts, Measure, each
from lvlm_guard.bench.scoring.nouns import amber_nouns
from lvlm_guard.bench.scoring.parsers import COMMON, Parser, named, official_amber
from lvlm_guard.bench.suite import Loaded, Problem, Required
from lvlm_guard.bench.suites.amber_files import ANNOTATIONS, IMAGES, PRINTED, QUERIES, RELATION, SAFE_WORDS
from lvlm_guard.bench.suites.amber_habits import add_habits, cover_measures
from lvlm_guard.bench.suites.amber_script import Coverage, coverage, printed_figures, script_figures
from lvlm_guard.bench.suites.arguments import at_least, is_text, one_of
from lvlm_guard.bench.suites.files import (
    BadRow,
    FileRow,
    Read,
    build_items,
    find_file,
    join,
    missing,
    read_document,
    read_rows,
    read_text,
)
from lvlm_guard.bench.suites.pictures import PictureFiles, PicturesInFolders
from lvlm_guard.bench.suites.yes_no import (
    TRUTHS,
    YES_NO_TOKENS,
    Part,
    habit_measures,
    of_kind,
    of_level,
    select_yes_no,
    yes_no_measures,
)
from lvlm_guard.errors import InputError
from lvlm_guard.files import exists

LEVEL_OF: Mapping[str, Level] = {
    "discriminative-hallucination": "object",
    "discriminative-attribute-state": "attribute",
    "discriminative-attribute-number": "attribute",
    "discriminative-attribute-action": "attribute",
    "discriminative-relation": "relation",
    "relation": "relation",
}
"""The six types of question by their names in the file. The two of relations are one set: all yes, and all no."""
GENERATIVE = "generative"
DISCRIMINATIVE = "discriminative"
_LEVEL_PARTS: Mapping[str, Level] = {
    "discriminative-existence": "object",
    "discriminative-attribute": "attribute",
    "discriminative-relation": "relation",
}
PARTS = ("all", GENERATIVE, DISCRIMINATIVE, *_LEVEL_PARTS)
_HOLDERS: Mapping[str, Sequence[Sequence[str]]] = {
    "all": [["all"], [GENERATIVE, DISCRIMINATIVE], [GENERATIVE, *_LEVEL_PARTS]],
    GENERATIVE: [[GENERATIVE], ["all"]],
    DISCRIMINATIVE: [[DISCRIMINATIVE], [*_LEVEL_PARTS], ["all"]],
    **{part: [[part], [DISCRIMINATIVE], ["all"]] for part in _LEVEL_PARTS},
}
"""Which files hold a part, its own first; each is called query_{name}.json."""
_LEVEL_NAMES: Mapping[Level, str] = {"object": "existence", "attribute": "attribute", "relation": "relation"}
_REMEMBERED = 2**13


@dataclass(frozen=True)
class Amber(PicturesInFolders):
    """AMBER. Scores of descriptions end in `_ours`: they need no tagger, and are not the official ones.

    The official ones come from its own script: `export` writes what it reads, `import_scores` reads what it prints. Answers to
    existence questions are all "no", those to relation questions of one type all "yes", of the other all "no"; an answer that
    is always "no" gets F1 79.7 from the script, so the yes-ratio stands beside every score. Habits are estimated from the other
    images: of objects from the lists that descriptions are held against, of attributes and contacts from the same questions.

    Args:
        part: "all", "generative" (descriptions), "discriminative" (questions), or the questions of one level:
            "discriminative-existence", "discriminative-attribute", "discriminative-relation". Read from the file of that
            part where it is there, else from one that holds more.
        prompt_suffix: Put behind every question, not behind the request for a description.
        max_new_tokens: Length of a description.
    """

    part: str = "all"
    prompt_suffix: str = ""
    max_new_tokens: int = 512

    name: ClassVar[str] = "amber"
    title: ClassVar[str] = "AMBER"
    levels: ClassVar[tuple[Level, ...]] = ("object", "attribute", "relation")
    licence: ClassVar[str] = "Apache-2.0"
    homepage: ClassVar[str] = "https://github.com/junyangwang0410/AMBER"
    pictures: ClassVar[PictureFiles] = PictureFiles("amber", IMAGES, ("image", "images", "data/image", ""))
    required: ClassVar[tuple[Required, ...]] = (ANNOTATIONS, QUERIES, RELATION, SAFE_WORDS, IMAGES)
    parsers: ClassVar[tuple[str, ...]] = ("ours", "official", "lmms_eval", "vlmevalkit")
    _words: ClassVar[_Words | None] = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        one_of(self.name, "part", self.part, PARTS)
        is_text(self.name, "prompt_suffix", self.prompt_suffix)
        at_least(self.name, "max_new_tokens", self.max_new_tokens, 1)

    def load(self, data: Path | None) -> Loaded:
        """Read the requested part, from the data folder or data in it.

        Word lists only where descriptions are scored.
        """
        queries = self._find_queries(data)
        annotations = read_rows(find_file(self.name, data, ANNOTATIONS, "data"))
        truths, problems = _index(annotations)
        if self.part in ("all", GENERATIVE):
            words = _Words.read(
                find_file(self.name, data, RELATION, "data"), find_file(self.name, data, SAFE_WORDS, "data")
            )
            object.__setattr__(self, "_words", words)

        all_items: dict[str, Item] = {}

        def items(row: FileRow) -> list[Item]:
            item = self._item(row, truths)
            all_items.setdefault(item.id, item)
            return [item] if self._belongs(item) else []

        read = join(build_items(read_rows(path), QUERIES, items) for path in queries)
        if exists(descriptions := queries[0].with_name(f"query_{GENERATIVE}.json")) and descriptions not in queries:
            for row in read_rows(descriptions).rows:
                with suppress(BadRow):  # not asked about; a file of the part itself reports its rows
                    items(row)
        return Loaded(add_habits(read.items, all_items.values()), (*problems, *read.problems))

    def _find_queries(self, data: Path | None) -> Sequence[Path]:
        """Find the files that hold the part."""
        for root in (data, data / "data") if data is not None else ():
            for names in _HOLDERS[self.part]:
                paths = [root / "query" / f"query_{name}.json" for name in names]
                if all(exists(path) for path in paths):
                    return paths
        raise missing(self.name, data, QUERIES)

    def _belongs(self, item: Item) -> bool:
        if self.part in _LEVEL_PARTS:
            return item.kind != GENERATIVE and item.level == _LEVEL_PARTS[self.part]
        return self.part == "all" or (item.kind == GENERATIVE) == (self.part == GENERATIVE)

    def _item(self, row: FileRow, truths: Mapping[str, FileRow]) -> Item:
        name, image, query = str(row.number("id")), row.picture("image"), row.text("query")
        if name not in truths:
            raise BadRow(f"{ANNOTATIONS.path} has no entry for the id {name}")
        kind = truths[name].word("type", (GENERATIVE, *LEVEL_OF))
        if kind == GENERATIVE:
            truth_lists = {key: truths[name].names(key) for key in ("truth", "hallu")}
            return Item(name, image, query, truth_lists, "object", kind, max_new_tokens=self.max_new_tokens)
        truth = truths[name].word("truth", TRUTHS)
        return Item(name, image, query + self.prompt_suffix, truth, LEVEL_OF[kind], kind, max_new_tokens=YES_NO_TOKENS)

    def scoring_files(self, data: Path | None) -> Mapping[str, Path]:
        """Return the files that descriptions are scored by, besides the items."""
        if self.part not in ("all", GENERATIVE):
            return {}
        return {need.path: find_file(self.name, data, need, "data") for need in (RELATION, SAFE_WORDS)}

    def measures(self, parser: str) -> Sequence[Measure]:
        """Return F1 of "no" over all questions first, then the rest, the levels, the types, habits, descriptions last.

        Where only descriptions are loaded, theirs come alone.

        Raises:
            InputError: Descriptions are wanted and nothing was loaded by this object, or the parser is unknown.
        """
        answer = _parser(parser)
        described = self._of_descriptions() if self.part in ("all", GENERATIVE) else []
        if self.part == GENERATIVE:
            return described
        levels = [Part(level, name, of_level(level), positive_no=True) for level, name in _LEVEL_NAMES.items()]
        whole = sorted(yes_no_measures(answer, Part("all", positive_no=True)), key=lambda measure: measure.name != "f1")
        of_levels = [measure for part in levels for measure in yes_no_measures(answer, part)]
        by_habit = [measure for part in [Part("all"), *levels] for measure in habit_measures(answer, part)]
        return [*whole, *of_levels, *_of_types(answer), *by_habit, *described]

    def _of_descriptions(self) -> list[Measure]:
        if self._words is None:
            raise InputError(f"{self.name}: the words are not known yet. Call load(data) on the same object first.")
        cover = self._words.counter()
        return [
            _measure(
                "chair_ours", "nouns that are absent", cover, lambda counts: (counts.bad, counts.nouns), better=False
            ),
            _measure(
                "cover_ours", "objects present that are named", cover, lambda counts: (counts.covered, counts.truths)
            ),
            _measure("hal_ours", "descriptions with an absent noun", cover, _hallucinates, better=False, binary=True),
            _measure(
                "cog_ours",
                "expected absent objects named",
                cover,
                lambda counts: (counts.expected, counts.hallus),
                better=False,
            ),
            _measure("length", "words per description", cover, lambda counts: (counts.words, 1), better=None),
            *cover_measures(lambda answered: cover(answered).covered_objects),
        ]

    def official(self, answers: Sequence[AnsweredItem], parser: str) -> Mapping[str, float | None]:
        """Return what the official script prints for the questions: percent to one place, positive class "no".

        Its counters begin at 0.001, so it never divides by zero. `official` takes `Yes` and `No` alone as answers, any other
        parser hands over what it reads. Figures of descriptions need the script itself.
        """
        answer = _parser(parser)
        return script_figures(
            [
                (answered.item.kind, str(answered.item.truth), answer(answered.text))
                for answered in select_yes_no(answers)
            ]
        )

    def export(self, answers: Sequence[AnsweredItem], path: Path, parser: str = "ours") -> None:
        """Write the response file of the official script, by id: descriptions raw, answers as `Yes` or `No`.

        An answer that the parser reads as neither is written raw, and the script counts it as wrong.

        Raises:
            InputError: The file cannot be written.
        """
        answer = _parser(parser)
        by_id = sorted(answers, key=lambda answered: int(answered.item.id))
        rows = [{"id": int(answered.item.id), "response": _response(answered, answer)} for answered in by_id]
        write_whole(path, json.dumps(rows, indent=1).encode())

    def import_scores(self, path: Path) -> Mapping[str, float]:
        """Read what the official script printed, by names like "generative/CHAIR" and "existence/F1".

        Raises:
            InputError: The file cannot be read, or holds no such figures.
        """
        figures = printed_figures(read_text(path, PRINTED))
        if not figures:
            raise InputError(f"{path} holds no figures of the official script. Expected layout: {PRINTED.layout}")
        return figures


@dataclass(frozen=True)
class _Words:
    """Words that go with an object, the vocabulary they make, and words that are never wrong; all in lower case."""

    associated: Mapping[str, Sequence[str]]
    vocabulary: Collection[str]
    safe: Collection[str]

    @classmethod
    def read(cls, relation: Path, safe_words: Path) -> _Words:
        """Read both lists.

        Raises:
            InputError: One of them cannot be read, or is not of its layout.
        """
        lists = read_document(relation, RELATION)
        if not isinstance(lists, dict) or not lists or not all(_is_list_of_words(value) for value in lists.values()):
            raise InputError(f"{relation} is not {RELATION.what}. Expected layout: {RELATION.layout}")
        associated = {key.lower(): [word.lower() for word in words] for key, words in lists.items()}
        safe = {line.strip().lower() for line in read_text(safe_words, SAFE_WORDS).splitlines()} - {""}
        return cls(associated, {*associated, *(word for words in associated.values() for word in words)}, safe)

    def counter(self) -> Callable[[AnsweredItem], Coverage]:
        """Return a function that compares a description with the truth of its item.

        It caches the nouns for all measures.
        """

        @lru_cache(maxsize=_REMEMBERED)
        def nouns(text: str) -> list[str]:
            return amber_nouns(text, self.vocabulary)

        def covered(answered: AnsweredItem) -> Coverage:
            truth, hallu = (list(map(str.lower, answered.item.truth[key])) for key in ("truth", "hallu"))
            return coverage(nouns(answered.text), truth, hallu, self.associated, self.safe, len(answered.text.split()))

        return covered


def _index(annotations: Read) -> tuple[dict[str, FileRow], list[Problem]]:
    """Return the truths by id, and the rows that have none or one that occurred before."""
    truths: dict[str, FileRow] = {}
    problems = list(annotations.problems)
    for row in annotations.rows:
        try:
            name = str(row.number("id"))
        except BadRow as error:
            problems.append(row.problem(error))
            continue
        if name in truths:
            problems.append(row.problem(f"the id {name} occurred before"))
        truths.setdefault(name, row)
    return truths, problems


def _is_list_of_words(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) for word in value)


def _parser(name: str) -> Parser:
    return named(Amber.name, {**COMMON, "official": official_amber}, name)


def _of_types(answer: Parser) -> list[Measure]:
    """Build accuracy, yes-ratio and unparsed share of each type; two have a single truth, so F1 would say little."""
    parts = [Part(level, _short(kind), of_kind(kind)) for kind, level in LEVEL_OF.items()]
    names = ("accuracy", "yes_ratio", "unparsed")
    return [measure for part in parts for measure in yes_no_measures(answer, part) if measure.name.startswith(names)]


def _short(kind: str) -> str:
    """Return the end of a measure's name for a type of question."""
    names = {
        "discriminative-hallucination": "hallucination",
        "discriminative-relation": "relation_yes",
        "relation": "relation_no",
    }
    return names.get(kind) or kind.rpartition("-")[2]


def _response(answered: AnsweredItem, answer: Parser) -> str:
    reading = None if answered.item.kind == GENERATIVE else answer(answered.text)
    return answered.text if reading is None else "Yes" if reading else "No"


def _hallucinates(counts: Coverage) -> Counts:
    return float(counts.bad > 0), 1.0


def _measure(
    name: str,
    title: str,
    cover: Callable[[AnsweredItem], Coverage],
    pick: Callable[[Coverage], Counts],
    *,
    better: bool | None = True,
    binary: bool = False,
) -> Measure:
    def count(answered: AnsweredItem) -> Counts | None:
        return pick(cover(answered)) if answered.item.kind == GENERATIVE else None

    return Measure(name, "object", title, each(count), higher_is_better=better, binary=binary)
