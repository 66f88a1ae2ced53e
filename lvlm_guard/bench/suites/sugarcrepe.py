"""SugarCrepe: which of two captions fits the image, where the other differs by one added, replaced or swapped word.

Hsieh et al., SugarCrepe: Fixing Hackable Benchmarks for Vision-Language Compositionality (NeurIPS 2023), arXiv 2306.14610.
The prompt is the one of the repository's results with a chat model; like those, every row is asked in both orders.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lvlm_guard.bench.items import AnsweredItem, Item, Level
from lvlm_guard.bench.scoring.measures import Counts, Group, Measure, each
from lvlm_guard.bench.scoring.parsers import unknown_parser
from lvlm_guard.bench.suite import Loaded, Required
from lvlm_guard.bench.suites.files import BadRow, FileRow, Read, build_items, join, missing, read_document
from lvlm_guard.bench.suites.pictures import PictureFiles, PicturesInFolders
from lvlm_guard.errors import InputError
from lvlm_guard.files import exists

LEVEL_OF: Mapping[str, Level] = {
    "add_obj": "object",
    "replace_obj": "object",
    "swap_obj": "object",
    "add_att": "attribute",
    "replace_att": "attribute",
    "swap_att": "attribute",
    "replace_rel": "relation",
}
ORDERS = ("positive-first", "negative-first")
_PROMPT = "Which caption best describes the image?\n(1) {}\n (2) {}\nOutput (1) or (2)."
_CHOICE_TOKENS = 16
_BRACKETED = re.compile(r"\(([12])\)")
_BARE = re.compile(r"(?<![\w.])([12])(?![\w])")
_ROWS = Required(
    path="{add,replace,swap}_{obj,att,rel}.json",
    what="the captions of SugarCrepe",
    source="github.com/RAIVNLab/sugar-crepe, data",
    layout='one object a file: {"0": {"filename": "000000085329.jpg", "caption": "...", "negative_caption": "..."}, ...}',
)
_IMAGES = Required(
    path="val2017/*.jpg",
    what="the pictures that the captions belong to",
    source="cocodataset.org, 2017 validation images",
    layout="val2017/000000085329.jpg",
)


@dataclass(frozen=True)
class SugarCrepe(PicturesInFolders):
    """SugarCrepe as a choice between two captions, each row in both orders: a row is right when both answers are.

    Answering by position alone is right in one order and wrong in the other, so it earns no row and half the answers.
    """

    name: ClassVar[str] = "sugarcrepe"
    title: ClassVar[str] = "SugarCrepe, two choices"
    levels: ClassVar[tuple[Level, ...]] = ("object", "attribute", "relation")
    licence: ClassVar[str] = "MIT; images under the terms of COCO"
    homepage: ClassVar[str] = "https://github.com/RAIVNLab/sugar-crepe"
    pictures: ClassVar[PictureFiles] = PictureFiles("sugarcrepe", _IMAGES, ("val2017", "images/val2017", "images", ""))
    required: ClassVar[tuple[Required, ...]] = (_ROWS, _IMAGES)
    parsers: ClassVar[tuple[str, ...]] = ("ours",)

    def load(self, data: Path | None) -> Loaded:
        """Read every file of the seven that is there, from the data folder or data in it."""
        roots = [data, data / "data"] if data is not None else []
        places = {kind: [root / f"{kind}.json" for root in roots] for kind in LEVEL_OF}
        there = {kind: path for kind, paths in places.items() for path in reversed(paths) if exists(path)}
        if not there:
            raise missing(self.name, data, _ROWS)
        return join(build_items(_read(path), _ROWS, _maker(kind)) for kind, path in there.items())

    def measures(self, parser: str) -> Sequence[Measure]:
        """Return rows right in both orders first, over all, by level and by kind.

        Then single answers, orders and position.
        """
        _check(parser)
        levels = {level: _level_is(level) for level in self.levels}
        kinds = {kind: _kind_is(kind) for kind in LEVEL_OF}
        return [
            _rows("all", "", lambda _: True),
            *(_rows(level, level, keep) for level, keep in levels.items()),
            *(_rows(LEVEL_OF[kind], kind, keep) for kind, keep in kinds.items()),
            _single("accuracy", "right answers", lambda _: True),
            *(
                _single(f"accuracy_{order.replace('-', '_')}", f"right answers, {order}", _order_is(order))
                for order in ORDERS
            ),
            _position(),
            _unparsed(),
        ]

    def official(self, answers: Sequence[AnsweredItem], parser: str) -> Mapping[str, float | None]:
        """Return accuracy of each kind in each order, as the repository reports chat models.

        None where nothing was asked.
        """
        _check(parser)
        figures: dict[str, float | None] = {}
        for kind in LEVEL_OF:
            for order in ORDERS:
                selected = [
                    answered
                    for answered in answers
                    if answered.item.kind == kind and answered.item.extra["order"] == order
                ]
                hits = sum(_right(answered) for answered in selected)
                figures[f"{kind}/{order}"] = hits / len(selected) if selected else None
        return figures


def parse_choice(text: str, captions: Sequence[str] = ()) -> str | None:
    """Return the only number in brackets, "1" or "2", else the only bare one, else that of the only quoted caption.

    Args:
        text: The answer.
        captions: The first and the second caption.
    """
    for pattern in (_BRACKETED, _BARE):
        numbers = set(pattern.findall(text))
        if numbers:
            return numbers.pop() if len(numbers) == 1 else None
    whole = [str(at) for at, caption in enumerate(captions, 1) if _bare(caption) in _bare(text)]
    return whole[0] if len(whole) == 1 else None


def _bare(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(".")


def _check(parser: str) -> None:
    if parser not in SugarCrepe.parsers:
        raise unknown_parser(SugarCrepe.name, dict.fromkeys(SugarCrepe.parsers), parser)


def _read(path: Path) -> Read:
    """Return the entries of a file; the line of each is its place."""
    document = read_document(path, _ROWS)
    if not isinstance(document, dict):
        raise InputError(f"{path} is not {_ROWS.what}: it is no JSON object. Expected layout: {_ROWS.layout}")
    rows = [
        FileRow(path.name, at, {**value, "key": key} if isinstance(value, dict) else {})
        for at, (key, value) in enumerate(document.items(), 1)
    ]
    return Read(path, rows, ())


def _maker(kind: str) -> Callable[[FileRow], list[Item]]:
    def items(row: FileRow) -> list[Item]:
        pair, image = f"{kind}:{row.text('key')}", row.picture("filename")
        captions = [row.text("caption"), row.text("negative_caption")]
        if captions[0] == captions[1]:
            raise BadRow("'caption' and 'negative_caption' are the same")
        return [
            Item(
                id=f"{pair}:{order}",
                image=image,
                prompt=_PROMPT.format(*ordered),
                truth=truth,
                level=LEVEL_OF[kind],
                kind=kind,
                max_new_tokens=_CHOICE_TOKENS,
                extra={"pair": pair, "order": order, "captions": list(ordered)},
            )
            for order, ordered, truth in zip(ORDERS, (captions, captions[::-1]), ("1", "2"), strict=True)
        ]

    return items


def _choose(answered: AnsweredItem) -> str | None:
    return parse_choice(answered.text, answered.item.extra["captions"])


def _right(answered: AnsweredItem) -> bool:
    return _choose(answered) == answered.item.truth


Keep = Callable[[Item], bool]


def _level_is(level: str) -> Keep:
    return lambda item: item.level == level


def _kind_is(kind: str) -> Keep:
    return lambda item: item.kind == kind


def _order_is(order: str) -> Keep:
    return lambda item: item.extra["order"] == order


def _pair(item: Item) -> str:
    return str(item.extra["pair"])


def _rows(level: str, name: str, keep: Keep) -> Measure:
    def count(group: Group) -> Counts | None:
        if len(group) != len(ORDERS) or not keep(group[0].item):
            return None
        return (float(all(_right(answered) for answered in group)), 1.0)

    ending = f"_{name}" if name else ""
    return Measure(
        f"pair_accuracy{ending}", level, f"right in both orders {name}".strip(), count, group=_pair, binary=True
    )


def _single(name: str, title: str, keep: Keep) -> Measure:
    def count(answered: AnsweredItem) -> Counts | None:
        return (float(_right(answered)), 1.0) if keep(answered.item) else None

    return Measure(name, "all", title, each(count), binary=True)


def _position() -> Measure:
    """Return the share of (1) among the choices made; 0.5 is no bias."""

    def count(answered: AnsweredItem) -> Counts | None:
        chosen = _choose(answered)
        return None if chosen is None else (float(chosen == "1"), 1.0)

    return Measure("first_ratio", "all", "choices of the first caption", each(count), higher_is_better=None)


def _unparsed() -> Measure:
    def count(answered: AnsweredItem) -> Counts:
        return (float(_choose(answered) is None), 1.0)

    return Measure("unparsed", "all", "answers that choose none", each(count), higher_is_better=False)
