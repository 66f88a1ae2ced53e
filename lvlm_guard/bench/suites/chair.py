"""CHAIR: which of the objects that a caption names are not in the image, counted against COCO's instances and captions.

Rohrbach et al., Object Hallucination in Image Captioning (EMNLP 2018), arXiv 1809.02156. Recall and length are reported
beside it: a caption that names nothing hallucinates nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np

from lvlm_guard.bench.items import AnsweredItem, Item, Level
from lvlm_guard.bench.scoring.measures import Counts, Measure, each
from lvlm_guard.bench.scoring.nouns import Reading, Vocabulary
from lvlm_guard.bench.scoring.parsers import unknown_parser
from lvlm_guard.bench.scoring.scores import CaptionCounts, count_caption
from lvlm_guard.bench.suite import Loaded, Problem, Required
from lvlm_guard.bench.suites.arguments import at_least, is_switch, is_text
from lvlm_guard.bench.suites.files import BadRow, FileRow, find_file, parse_json, read_document, read_text, records
from lvlm_guard.bench.suites.pictures import PictureFiles, PicturesInFolders
from lvlm_guard.errors import InputError

_REMEMBERED = 2**13
_END = re.compile(r"[.!?][\"'\u201d\u2019)]*\s*$")
_LAST_END = re.compile(r"(?s).*[.!?][\"'\u201d\u2019)]*(?=\s)")
_SYNONYMS = Required(
    path="synonyms.txt",
    what="the objects of CHAIR and their synonyms",
    source="github.com/LisaAnne/Hallucination, data",
    layout="a line for each of the 80 classes, its name first: bench, pew",
)
_INSTANCES = Required(
    path="instances_val2014.json",
    what="the objects in COCO's images",
    source="cocodataset.org, 2014 train/val annotations",
    layout='{"images": [{"id": 42, "file_name": "COCO_val2014_000000000042.jpg"}], "categories": [{"id": 1, "name": "person"}], '
    '"annotations": [{"image_id": 42, "category_id": 1}]}',
)
_CAPTIONS = Required(
    path="captions_val2014.json",
    what="the reference captions of COCO's images",
    source="cocodataset.org, 2014 train/val annotations",
    layout='{"annotations": [{"image_id": 42, "caption": "A dog."}]}',
)
_IDS = Required(
    path="(the argument ids)",
    what="a list of image ids",
    source="the authors of the subset",
    layout="a number a line, or a JSON array of numbers",
)
_IMAGES = Required(
    path="val2014/*.jpg",
    what="COCO's images",
    source="cocodataset.org, 2014 validation images",
    layout="val2014/COCO_val2014_000000000042.jpg",
)


@dataclass(frozen=True)
class Chair(PicturesInFolders):
    """CHAIR over images of COCO's 2014 validation set. `measures` and `official` need the `load` of the same object.

    `truth` of an item is {parser: classes in the image}: annotated instances, and what the same reading of the five reference
    captions finds. Parser `official` keeps the artefacts of the official vocabulary and its singulars, `ours` repairs them.

    Args:
        images: How many images are drawn; 0 for all.
        seed: Of the draw.
        ids: File of image ids to take instead of a draw, in its order; relative to the data folder.
        prompt: What is asked.
        max_new_tokens: Length of a caption. CHAIR grows with it, so it belongs to the result.
        drop_unfinished: Leave out what follows the last full stop before objects are counted, where there is one.
    """

    images: int = 500
    seed: int = 0
    ids: str = ""
    prompt: str = "Please describe this image in detail."
    max_new_tokens: int = 512
    drop_unfinished: bool = False

    name: ClassVar[str] = "chair"
    title: ClassVar[str] = "CHAIR"
    levels: ClassVar[tuple[Level, ...]] = ("object",)
    licence: ClassVar[str] = "BSD-2-Clause; images and annotations under the terms of COCO"
    homepage: ClassVar[str] = "https://github.com/LisaAnne/Hallucination"
    pictures: ClassVar[PictureFiles] = PictureFiles("chair", _IMAGES, ("val2014", "images/val2014", "images", ""))
    required: ClassVar[tuple[Required, ...]] = (_SYNONYMS, _INSTANCES, _CAPTIONS, _IMAGES)
    parsers: ClassVar[tuple[str, ...]] = ("ours", "official")
    _vocabulary: ClassVar[Vocabulary | None] = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        at_least(self.name, "images", self.images, 0)
        at_least(self.name, "seed", self.seed, 0)
        at_least(self.name, "max_new_tokens", self.max_new_tokens, 1)
        is_text(self.name, "ids", self.ids)
        is_text(self.name, "prompt", self.prompt)
        is_switch(self.name, "drop_unfinished", self.drop_unfinished)

    def load(self, data: Path | None) -> Loaded:
        """Read the vocabulary, the annotations and the images chosen."""
        vocabulary = _read_vocabulary(find_file(self.name, data, _SYNONYMS, "data", "annotations"))
        object.__setattr__(self, "_vocabulary", vocabulary)
        path = find_file(self.name, data, _INSTANCES, "annotations")
        captions = find_file(self.name, data, _CAPTIONS, "annotations")
        instances = read_document(path, _INSTANCES)
        listed_ids, problems = _group_ids(records(instances, path, _INSTANCES, "images"), path)
        chosen = self._choose(data, listed_ids)
        names = _class_names(records(instances, path, _INSTANCES, "categories"), vocabulary, path)
        present = _Present(vocabulary, names, {image: {parser: set() for parser in self.parsers} for image in chosen})
        for row in records(instances, path, _INSTANCES, "annotations"):
            problems += present.with_instance(row)
        for row in records(read_document(captions, _CAPTIONS), captions, _CAPTIONS, "annotations"):
            problems += present.with_caption(row)
        problems += _uncaptioned(chosen, present.captioned, captions)
        return Loaded(
            tuple(self._item(image, listed_ids[image], present.classes[image]) for image in chosen), tuple(problems)
        )

    def _choose(self, data: Path | None, listed_ids: Mapping[int, str]) -> list[int]:
        """Choose the ids of the images to caption: those of the file, or a draw without replacement, in order."""
        if self.ids:
            return _read_ids((data or Path()) / self.ids, listed_ids)
        every = np.array(sorted(listed_ids))
        if not self.images or self.images >= len(every):
            return [int(name) for name in every]
        draw = np.random.default_rng(self.seed).choice(every, self.images, replace=False)
        return sorted(int(name) for name in draw)

    def _item(self, image: int, file: str, present: Mapping[str, Collection[str]]) -> Item:
        return Item(
            id=str(image),
            image=file,
            prompt=self.prompt,
            truth={parser: sorted(present[parser]) for parser in self.parsers},
            level="object",
            kind="caption",
            max_new_tokens=self.max_new_tokens,
        )

    def scoring_files(self, data: Path | None) -> Mapping[str, Path]:
        """Return the file that captions are scored by, besides the items."""
        return {_SYNONYMS.path: find_file(self.name, data, _SYNONYMS, "data", "annotations")}

    def measures(self, parser: str) -> Sequence[Measure]:
        """Return CHAIRi first, then CHAIRs, recall of the objects present, objects named and words per caption.

        Raises:
            InputError: Nothing was loaded by this object, or the parser is unknown.
        """
        count = self._counter(parser)
        return [
            _measure(
                "chair_i",
                "objects named that are absent",
                count,
                lambda counts: (counts.absent, counts.named),
                better=False,
            ),
            _measure("chair_s", "captions that name an absent object", count, _captions, better=False, binary=True),
            _measure("recall", "objects present that are named", count, lambda counts: (counts.found, counts.present)),
            _measure("named", "objects named per caption", count, lambda counts: (counts.named, 1), better=None),
            _measure("length", "words per caption", count, lambda counts: (counts.words, 1), better=None),
        ]

    def official(self, answers: Sequence[AnsweredItem], parser: str) -> Mapping[str, float | None]:
        """Return CHAIRs and CHAIRi in percent to one place; None where there is no caption, or none names an object."""
        count = self._counter(parser)
        every = [count(answer) for answer in answers]
        named = sum(counts.named for counts in every)
        return {
            "CHAIRs": round(100 * sum(counts.absent > 0 for counts in every) / len(every), 1) if every else None,
            "CHAIRi": round(100 * sum(counts.absent for counts in every) / named, 1) if named else None,
        }

    def _counter(self, parser: str) -> Callable[[AnsweredItem], CaptionCounts]:
        read = self._reading(parser)

        def count(answer: AnsweredItem) -> CaptionCounts:
            caption = finished(answer.text) if self.drop_unfinished else answer.text
            return count_caption(read(caption), set(answer.item.truth[parser]), len(caption.split()))

        return count

    def _reading(self, parser: str) -> Reading:
        if parser not in self.parsers:
            raise unknown_parser(self.name, dict.fromkeys(self.parsers), parser)
        if self._vocabulary is None:
            raise InputError(f"{self.name}: the objects are not known yet. Call load(data) on the same object first.")
        return lru_cache(maxsize=_REMEMBERED)(_readings(self._vocabulary)[parser])


def finished(caption: str) -> str:
    """Cut an unfinished last sentence off.

    A caption that ends with a whole one, or holds no end of a sentence, is unchanged.
    """
    if _END.search(caption):
        return caption
    match = _LAST_END.match(caption)
    return match[0] if match else caption


def _readings(vocabulary: Vocabulary) -> Mapping[str, Reading]:
    return {"official": vocabulary.official, "ours": vocabulary.ours}


def _read_vocabulary(path: Path) -> Vocabulary:
    vocabulary = Vocabulary(read_text(path, _SYNONYMS).splitlines())
    if not vocabulary.classes:
        raise InputError(f"{path} is empty. It should be {_SYNONYMS.what}. Expected layout: {_SYNONYMS.layout}")
    return vocabulary


def _group_ids(rows: Sequence[FileRow], path: Path) -> tuple[dict[int, str], list[Problem]]:
    """Return file names by image id, and the records that could not be used."""
    ids: dict[int, str] = {}
    problems = [problem for row in rows for problem in _list(row, ids)]
    if not ids:
        raise InputError(f"{path} lists no usable image. Expected layout: {_INSTANCES.layout}")
    return ids, problems


def _list(row: FileRow, ids: dict[int, str]) -> list[Problem]:
    """Add the file name of one image; the problem if the record cannot be used."""
    try:
        number, name = row.number("id"), row.picture("file_name")
    except BadRow as error:
        return [row.problem(error)]
    if number in ids:
        return [row.problem(f"the id {number} occurred before")]
    ids[number] = name
    return []


def _read_ids(path: Path, allowed: Mapping[int, str]) -> list[int]:
    text = read_text(path, _IDS)
    try:
        names = parse_json(text) if text.lstrip().startswith("[") else text.split()
        ids = list(dict.fromkeys(FileRow(path.name, at, {"id": name}).number("id") for at, name in enumerate(names, 1)))
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is not {_IDS.what}: {error}. Expected layout: {_IDS.layout}") from error
    unknown = [name for name in ids if name not in allowed]
    if unknown or not ids:
        what = f"the id {unknown[0]}, which {_INSTANCES.path} does not have" if unknown else "no id"
        raise InputError(f"{path} names {what}. Expected layout: {_IDS.layout}")
    return ids


@dataclass(frozen=True)
class _Present:
    """Classes in each chosen image by parser: annotated ones, and those that the reference captions name."""

    vocabulary: Vocabulary
    names: Mapping[int, str]
    classes: Mapping[int, Mapping[str, set[str]]]
    captioned: set[int] = field(default_factory=set)

    def with_instance(self, row: FileRow) -> list[Problem]:
        """Add one annotated object; the problem if the record cannot be used."""
        try:
            image, category = row.number("image_id"), row.number("category_id")
        except BadRow as error:
            return [row.problem(error)]
        if category not in self.names:
            return [row.problem(f"'category_id' {category} is not among the categories")]
        for found_ones in self.classes.get(image, {}).values():
            found_ones.add(self.names[category])
        return []

    def with_caption(self, row: FileRow) -> list[Problem]:
        """Add what one reference caption names; the problem if the record cannot be used."""
        try:
            image, caption = row.number("image_id"), row.text("caption")
        except BadRow as error:
            return [row.problem(error)]
        self.captioned.add(image)
        for parser, found_ones in self.classes.get(image, {}).items():
            found_ones.update(_readings(self.vocabulary)[parser](caption))
        return []


def _uncaptioned(chosen: Sequence[int], captioned: Collection[int], path: Path) -> list[Problem]:
    """Return the chosen images without a reference caption; their truth would be too small."""
    without = [image for image in chosen if image not in captioned]
    if len(without) == len(chosen):
        raise InputError(f"{path} has no caption of any image chosen. It is {_CAPTIONS.what}, from {_CAPTIONS.source}.")
    return [Problem(path.name, 0, f"there is no caption of the image {image}") for image in without]


def _class_names(rows: Sequence[FileRow], vocabulary: Vocabulary, path: Path) -> dict[int, str]:
    """Return the classes of CHAIR by category id; an unusable category makes problems of its annotations."""
    names: dict[int, str] = {}
    for row in rows:
        try:
            number, name = row.number("id"), row.text("name").strip()
        except BadRow:
            continue
        if name.lower() not in vocabulary.repaired:
            raise InputError(
                f"{path}: the category {name!r:.60} is not in {_SYNONYMS.path}. Take both from their sources."
            )
        if names.setdefault(number, vocabulary.repaired[name.lower()]) != vocabulary.repaired[name.lower()]:
            raise InputError(f"{path}: two categories have the id {number}. Take the file from its source again.")
    return names


def _captions(counts: CaptionCounts) -> tuple[float, float]:
    return float(counts.absent > 0), 1.0


def _measure(
    name: str,
    title: str,
    count: Callable[[AnsweredItem], CaptionCounts],
    pick: Callable[[CaptionCounts], Counts],
    *,
    better: bool | None = True,
    binary: bool = False,
) -> Measure:
    return Measure(
        name, "object", title, each(lambda counts: pick(count(counts))), higher_is_better=better, binary=binary
    )
