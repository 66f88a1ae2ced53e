"""Labelled pictures to fit on: a JSONL file, instances as COCO writes them, or a folder of pictures without labels."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lvlm_guard.errors import InputError, quote
from lvlm_guard.files import is_folder
from lvlm_guard.request import picture_loading
from lvlm_guard.strategy.fitters import LabelledObject, LabelledPicture

MOST_REPORTED = 5
SIDES = 4
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
FORM = '{"image", "objects": [{"name", "box": [left, top, right, bottom], "attributes": [...]}]}'


def read_labelled(path: Path, images: Path | None = None, count: int | None = None) -> list[LabelledPicture]:
    """Read labelled pictures.

    Args:
        path: A JSONL file with a picture on each line, a JSON file of COCO's instances, or a folder of pictures, which have no
            labels.
        images: The folder of the pictures; that of the file where None.
        count: At most so many, the first ones.

    Raises:
        InputError: The file cannot be read or is empty, a line or annotation cannot be used, or no picture shows an object; faults are
            named.
    """
    if is_folder(path):
        files = sorted(each for each in path.iterdir() if each.suffix.lower() in ENDINGS)
        rows: list[tuple[str, Path, Any]] = [(each.name, each, None) for each in files[:count]]
    else:
        rows = _read_rows(path, images or path.parent)[:count]
    read = [_load(*row) for row in rows]
    pictures = [each for each in read if isinstance(each, LabelledPicture)]
    faults = [each for each in read if isinstance(each, str)]
    if faults:
        more = f" ({len(faults) - MOST_REPORTED} more)" if len(faults) > MOST_REPORTED else ""
        raise InputError(f"{path} has pictures that cannot be used: {'; '.join(faults[:MOST_REPORTED])}{more}.")
    if not pictures:
        raise InputError(f"{path} holds no pictures: a line is an object {FORM}, or the file is of COCO's instances.")
    if any(each.objects is not None for each in pictures) and not any(each.objects for each in pictures):
        raise InputError(f"{path} labels no object in any of {len(pictures)} pictures.")
    return pictures


def read_synonyms(path: Path) -> dict[str, tuple[str, ...]]:
    """Read further names of objects: a JSON object of lists of texts by name.

    Raises:
        InputError: It is none.
    """
    content = _parse(_read_text(path), str(path))
    is_mapping = isinstance(content, Mapping) and all(
        isinstance(synonyms, list) and all(isinstance(synonym, str) for synonym in synonyms)
        for synonyms in content.values()
    )
    if not is_mapping:
        raise InputError(f'{path} must be an object of lists of texts, as in {{"bicycle": ["bike"]}}.')
    return {str(name): tuple(synonyms) for name, synonyms in content.items()}


def _read_rows(path: Path, images: Path) -> list[tuple[str, Path, Any]]:
    """Return for each picture its place in the file, its own file, and its objects as they are written."""
    text = _read_text(path)
    if path.suffix.lower() == ".json":
        return _read_instances(_parse(text, str(path)), images, path)
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    rows = [(f"line {number}", _parse(line, f"{path}, line {number}")) for number, line in lines]
    wrong = [place for place, row in rows if not isinstance(row, Mapping) or not isinstance(row.get("image"), str)]
    if wrong:
        raise InputError(f"{path}, {wrong[0]}: an object {FORM} is wanted.")
    return [(place, images / row["image"], row.get("objects")) for place, row in rows]


def _read_instances(content: Any, images: Path, path: Path) -> list[tuple[str, Path, Any]]:
    """Return the pictures of COCO's instances; crowds are left out."""
    try:
        names = {each["id"]: each["name"] for each in content["categories"]}
        objects: dict[Any, list[Any]] = defaultdict(list)
        for each in content["annotations"]:
            if not each.get("iscrowd"):
                left, top, wide, high = each["bbox"]
                box = [left, top, left + wide, top + high]
                objects[each["image_id"]].append({"name": names[each["category_id"]], "box": box})
        return [
            (f"image {each['id']}", images / each["file_name"], objects.get(each["id"], []))
            for each in content["images"]
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path} is not as COCO writes instances ({type(error).__name__}: {error}): images, annotations and categories are wanted. "
            "Lines of objects belong in a .jsonl file."
        ) from None


def _load(place: str, picture: Path, objects: Any) -> LabelledPicture | str:
    """Return one picture with checked objects, or what is wrong with it, and where."""
    try:
        loaded = picture_loading.read_picture(picture)
        return LabelledPicture(loaded, None if objects is None else tuple(_read_objects(objects, loaded.size)))
    except InputError as error:
        return f"{place}: {error}"


def _read_objects(objects: Any, size: tuple[int, int]) -> Iterable[LabelledObject]:
    if not isinstance(objects, list):
        raise InputError(f"objects must be a list, got {quote(objects)}")
    for each in objects:
        name = each.get("name") if isinstance(each, Mapping) else None
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"an object has no name: {quote(each)}")
        attributes = each.get("attributes") or []
        if not isinstance(attributes, list) or not all(
            isinstance(value, str) and value.strip() for value in attributes
        ):
            raise InputError(f"attributes of {name!r} must be a list of texts, got {quote(attributes)}")
        box = each.get("box")
        yield LabelledObject(name, None if box is None else _check_box(box, name, size), tuple(attributes))


def _check_box(box: Any, name: str, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return a box, cut to the picture where it stands out by rounding.

    Raises:
        InputError: It is no box, or lies outside the picture.
    """
    is_box = (
        isinstance(box, list)
        and len(box) == SIDES
        and all(isinstance(side, (int, float)) and not isinstance(side, bool) for side in box)
    )
    if not is_box:
        raise InputError(f"the box of {name!r} must be [left, top, right, bottom], got {quote(box)}")
    (wide, high), slack = size, 1.0
    left, top, right, bottom = (float(side) for side in box)
    if not (-slack <= left < right <= wide + slack and -slack <= top < bottom <= high + slack):
        raise InputError(f"the box {box} of {name!r} lies outside its picture of {wide} x {high}, or is empty")
    return max(left, 0.0), max(top, 0.0), min(right, float(wide)), min(bottom, float(high))


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}.") from None


def _parse(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(f"{place} is not JSON ({error}).") from None
