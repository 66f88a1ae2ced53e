"""Files and pictures of suites that were changed or replaced, and arguments that make no sense; then gathered and scored."""

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzzing import Attempt, Surface
from PIL import Image
from suites_of_files import OF_FILES

from lvlm_guard.bench.items import AnsweredItem
from lvlm_guard.bench.running import runner
from lvlm_guard.bench.running.choosing import choose_suites
from lvlm_guard.bench.running.manifest import RunPlan
from lvlm_guard.bench.suites.files import check_picture_name

DATA = Path(__file__).resolve().parents[1] / "bench" / "data"
FOLDERS = ("val2014", "val2017", "image", "VG_100K", "hallusion_bench", "")
ANSWERS = ("Yes", "no", "", "A. on", "(1)", "A man, two dogs.\nNo", "不", "\0", "no " * 50)
VALUES = (None, True, -7, 1.5, 10**400, float("nan"), "", " ", "../x.jpg", "/etc/passwd", "C:\\x", "a\0b", "\ud800", "雪.jpg", "x" * 300,
          [], [1, {}], {"a": 2}, ["\ud800"])  # fmt: skip
CONTENTS = (b"", b" \n", b"[]", b"{}", b"null", b"[" * 50_000, b'{"a":' * 50_000, b"\xff\xfe", b"version https://git-lfs.github.com/spec/v1\n",
            b"<!DOCTYPE html><html>", b"\x1f\x8b\x08", b"PK\x03\x04", b"[{}]", b"[1, 2]", b'{"0": 1}', b"\t\n", b"\0" * 50)  # fmt: skip
ARGUMENTS = ("part=generative", "part=", "source=gqa", "files=**/*", "files=../*", "files=.", "files=[", "ids=/etc/passwd", "ids=.",
             "ids=synonyms.txt", "images=0", "images=-1", "images=1", "seed=x", "part=discriminative-relation", "max_new_tokens=0",
             "prompt_suffix=\0", "text_only=no", "text_only=maybe", "drop_unfinished=yes")  # fmt: skip


def change_bytes(chance: random.Random, content: bytes) -> bytes:
    at = chance.randrange(len(content) + 1)
    return content[:at] + chance.randbytes(chance.randrange(1, 9)) + content[at + chance.randrange(9) :]


def truncate(chance: random.Random, content: bytes) -> bytes:
    return content[: chance.randrange(len(content) + 1)]


def replace_all(chance: random.Random, content: bytes) -> bytes:
    return chance.choice(
        [
            *CONTENTS,
            b"\xef\xbb\xbf" + content,
            content.replace(b"\n", b"\r\n"),
            content * 2,
            content.replace(b'"', b"'"),
        ]
    )


def change_text(chance: random.Random, content: bytes) -> bytes:
    """Exchange one value of JSON text for another, or rename keys."""
    values = list(re.finditer(rb'(?<=: )("[^"\n]*"|\d+|\[\])', content))
    if not values or chance.random() < 0.2:
        keys = sorted(set(re.findall(rb'"\w+"(?=:)', content))) or [b"a"]
        return content.replace(chance.choice(keys), chance.choice([*keys, b'"other"']), chance.choice((1, -1)))
    spot = chance.choice(values)
    return content[: spot.start()] + json.dumps(chance.choice(VALUES)).encode() + content[spot.end() :]


def change_rows(chance: random.Random, content: bytes) -> bytes:
    """Change a value in every row of a document, or double, drop and mix rows."""
    document: Any = json.loads(content)
    rows = document if isinstance(document, list) else next((v for v in document.values() if isinstance(v, list)), None)
    if not rows:
        return truncate(chance, content)
    kind = chance.randrange(3)
    if kind == 0:
        rows += rows[: chance.randrange(len(rows) + 1)]
    elif kind == 1:
        chance.shuffle(rows)
        del rows[chance.randrange(len(rows)) :]
    else:
        key = chance.choice(sorted({key for row in rows if isinstance(row, dict) for key in row}) or ["a"])
        for row in rows:
            if isinstance(row, dict):
                row[key] = chance.choice(VALUES)
    return json.dumps(document).encode()


CHANGES: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    change_bytes,
    truncate,
    replace_all,
    change_text,
    change_text,
    change_rows,
)


def change_one(chance: random.Random, folder: Path) -> str:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    if not paths:
        return "nothing left to change"
    path = chance.choice(paths)
    name, content = path.relative_to(folder), path.read_bytes()
    if chance.random() < 0.1:
        path.unlink()
        if chance.random() < 0.5:
            path.mkdir()
            return f"{name}: a folder instead"
        return f"{name}: removed"
    change = chance.choice(CHANGES)
    try:
        path.write_bytes(change(chance, content))
    except (ValueError, AttributeError, RecursionError):
        path.write_bytes(truncate(chance, content))
    return f"{name}: {change.__name__}"


def add_pictures(chance: random.Random, folder: Path) -> None:
    """A picture for every name that the files hold, most of them whole."""
    names = set(
        re.findall(
            rb"[\w/.]+\.(?:jpg|png)", b" ".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
        )
    )
    root = folder / chance.choice(FOLDERS)
    for name in sorted(names):
        path = root / name.decode().lstrip("/").replace("..", "x")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(path, "PNG")
        if chance.random() < 0.05:
            path.write_bytes(chance.choice((path.read_bytes()[:40], *CONTENTS)))


def use(spec: str, folder: Path, missing_pictures: str, limit: int | None, chance: random.Random) -> None:
    choices = choose_suites([spec])
    gathered = runner.gather(RunPlan(choices, (), data=folder, limit=limit, missing_pictures=missing_pictures))
    for name, choice in choices.items():
        answers = [AnsweredItem(item, chance.choice(ANSWERS)) for item in gathered.items[name]]
        for parser in choice.suite.parsers:
            for measure in choice.suite.measures(parser):
                measure.value(answers)
            choice.suite.official(answers, parser)
        for item in gathered.items[name]:
            if item.image is not None:
                check_picture_name(item.image)
                choice.suite.picture(folder, item.image)


def draw(chance: random.Random, folder: Path) -> Attempt:
    name = chance.choice(OF_FILES)
    copy = shutil.copytree(DATA / name, folder / "data")
    if chance.random() < 0.6:
        add_pictures(chance, copy)
    done = [change_one(chance, copy) for _ in range(chance.choice((0, 1, 1, 1, 2, 3)))]
    spec = f"{name}:{chance.choice(ARGUMENTS)}" if chance.random() < 0.25 else name
    data = (
        copy
        if chance.random() < 0.95
        else chance.choice([copy / "nowhere", next((path for path in copy.rglob("*") if path.is_file()), copy)])
    )
    pictures, limit = chance.choice(("skip", "skip", "skip", "refuse", "x")), chance.choice((None, None, 1, 3, 0))
    return Attempt(
        f"{spec}; {'; '.join(done)}; {pictures}; limit {limit}", lambda: use(spec, data, pictures, limit, chance)
    )


SURFACE = Surface("suite files", draw, attempts=800, slice=80)
