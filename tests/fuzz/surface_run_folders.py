"""Folders of finished runs whose files were changed, then read, scored, compared and taken up again.

An answer that is counted must be the one that the run wrote, so any other is a fault as well as any raw error.
"""

import functools
import json
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import quick_run
from fuzzing import Attempt, Surface

from lvlm_guard.bench.items import AnsweredItem
from lvlm_guard.bench.reporting import comparing, export, page, results
from lvlm_guard.bench.running import store, systems
from lvlm_guard.bench.running.manifest import RunPlan, SuiteChoice
from lvlm_guard.cli.bench_tables import notes
from lvlm_guard.testbed.suite import Scenes

WITHOUT = systems.CONTROLS[2:]
VALUES = (
    None,
    True,
    0,
    -1,
    1.5,
    10**400,
    float("nan"),
    float("inf"),
    "",
    "yes",
    "..",
    "a\0b",
    "\ud800",
    [],
    {},
    [[1]],
    {"a": {}},
)
TEXTS = (
    b"",
    b"null",
    b"[]",
    b"{}",
    b"[" * 50_000,
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"NaN",
    b"{half\n",
    b"\n",
    b"\0",
    b"9" * 5000,
)
PLAN = RunPlan(
    {"scenes": SuiteChoice(Scenes(count=2, captions=1), "ours", {"count": 2, "captions": 1})},
    systems.build_systems({}, WITHOUT),
    WITHOUT,
    batch=4,
)


@functools.cache
def finished_runs() -> tuple[Path, Path]:
    """The folder of a finished run, and that of another one of the same items."""
    place = Path(tempfile.mkdtemp())
    for name, seed in (("run", 0), ("other", 1)):
        quick_run.run(place / name, RunPlan(PLAN.suites, PLAN.systems, PLAN.without, batch=4, seed=seed))
    return place / "run", place / "other"


@functools.cache
def genuine_answers() -> dict[str, dict[str, AnsweredItem]]:
    return collect(store.read(finished_runs()[0]))


def collect(record: store.Record) -> dict[str, dict[str, AnsweredItem]]:
    return {
        system: {answer.item.id: answer for answer in record.read_answers(system, "scenes")}
        for system in record.systems
    }


def change_bytes(chance: random.Random, content: bytes, _: bytes) -> bytes:
    at, count = chance.randrange(len(content) + 1), chance.randrange(1, 5)
    fresh = chance.choice([chance.randbytes(count), b"\n", b"\r", b"\0", b'"', b"}", b"1", b"yes"])
    return content[:at] + fresh + content[at + chance.randrange(5) :]


def truncate(chance: random.Random, content: bytes, _: bytes) -> bytes:
    return content[: chance.randrange(len(content) + 1)]


def replace_all(chance: random.Random, content: bytes, _: bytes) -> bytes:
    return chance.choice(
        [*TEXTS, content[::-1], content + content, content.replace(b"\n", b"\r\n"), b"\xef\xbb\xbf" + content]
    )


def change_lines(chance: random.Random, content: bytes, other: bytes) -> bytes:
    lines, foreign = content.splitlines(keepends=True), other.splitlines(keepends=True) or [b"\n"]
    at, to = chance.randrange(len(lines) + 1), chance.randrange(len(lines) + 1)
    kind = chance.randrange(5)
    if kind == 0:
        return b"".join(lines[:at] + lines[at + 1 :])
    if kind == 1:
        return b"".join(lines[:at] + lines[at : at + 1] * 2 + lines[at + 1 :])
    if kind == 2:
        chance.shuffle(lines)
        return b"".join(lines)
    if kind == 3:
        return b"".join([*lines[:at], foreign[min(at, len(foreign) - 1)], *lines[at + 1 :]])
    return b"".join([*lines[:at], lines[to] if to < len(lines) else b"{}\n", *lines[at:]])


def change_value(chance: random.Random, content: bytes, other: bytes) -> bytes:
    """Change one value of one object, or a key; the file stays JSON."""
    pretty = content.startswith(b"{\n")
    lines = [content] if pretty else content.splitlines()
    if not lines:
        return change_bytes(chance, content, other)
    at = chance.randrange(len(lines))
    value = json.loads(lines[at])
    parent = value
    while True:
        name = chance.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
        inner = parent[name]
        if not isinstance(inner, (dict, list)) or not inner or chance.random() < 0.3:
            break
        parent = inner
    kind = chance.randrange(3) if isinstance(parent, dict) else 0
    if kind == 0:
        parent[name] = chance.choice(VALUES)
    elif kind == 1:
        del parent[name]
    else:
        parent[chance.choice(("more", "", "__class__", "check"))] = parent.pop(name)
    lines[at] = json.dumps(value).encode()
    return b"\n".join(lines) + b"\n"


CHANGES = (change_bytes, truncate, replace_all, change_lines, change_lines, change_value, change_value)


def change_place(chance: random.Random, path: Path) -> str:
    """Remove something, or put something else in its place."""
    kind = chance.randrange(4)
    if kind == 0 and path.name != "manifest.json":
        path.unlink()
        return "removed"
    if kind == 1:
        path.unlink()
        path.mkdir()
        return "a folder instead"
    if kind == 2 and len(path.relative_to(path.parents[1]).parts) > 1 and path.parent.name in ("greedy", "sampling"):
        shutil.rmtree(path.parent)
        path.parent.write_text("mine")
        return "a file instead of its folder"
    path.with_name(chance.choice(("more.jsonl", ".x.draft", "results.json", "é" * 60))).mkdir()
    return "a folder beside"


def use(folder: Path, kind: int) -> None:
    if kind == 0:
        quick_run.run(folder, PLAN)
    record = store.read(folder)
    check(record)
    if kind == 1:
        scored = results.score(record, resamples=99)
        notes(scored)
        export.write(scored, folder, "results")
        page.write(record, scored, folder / "report.html")
    elif kind == 2:
        comparing.compare(store.read(finished_runs()[1]), record)
    for system in record.systems:
        record.costs(system, "scenes")
        record.refusal(system, "scenes")


def check(record: store.Record) -> None:
    """Every answer that would be counted is the one that the run wrote."""
    for system, answers in collect(record).items():
        for name, answer in answers.items():
            if answer != genuine_answers()[system][name]:
                raise AssertionError(f"counted as genuine: {system}, {name}, {answer}")


def draw(chance: random.Random, folder: Path) -> Attempt:
    run, other = finished_runs()
    copy = shutil.copytree(run, folder / "run")
    done = [change_one(chance, copy, other) for _ in range(chance.choice((1, 1, 1, 2)))]
    kind = chance.randrange(3)
    return Attempt(f"{'; '.join(done)}; use {kind}", lambda: use(copy, kind))


def change_one(chance: random.Random, copy: Path, other: Path) -> str:
    paths = sorted(path for path in copy.rglob("*") if path.is_file() and path.name != "lock")
    if not paths:
        return "nothing left to change"
    weights = [4 if "answers" in path.parts else 1 for path in paths]
    path = chance.choices(paths, weights)[0]
    name = path.relative_to(copy)
    if chance.random() < 0.1:
        return f"{name}: {change_place(chance, path)}"
    change: Callable[[random.Random, bytes, bytes], bytes] = chance.choice(CHANGES)
    content = path.read_bytes()
    try:
        changed = change(chance, content, (other / name).read_bytes() if (other / name).is_file() else b"")
    except (ValueError, LookupError, TypeError):  # what an earlier change left is nothing that this one can change
        changed = truncate(chance, content, b"")
    path.write_bytes(changed)
    return f"{name}: {change.__name__}"


SURFACE = Surface("run folders", draw, attempts=800, slice=40)
