"""The folder of a run: its settings and every raw answer, so that it can be resumed and scored again.

`manifest.json` says what the run is, `items.jsonl` holds the prompts and their truth, `answers/<system>/<suite>.jsonl` the raw
answers, `costs/` what each batch took, `refusals/` why a system could not answer. Answers and costs only grow, a batch at a
time; the rest is written whole.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvlm_guard.bench import files
from lvlm_guard.bench.items import AnsweredItem, Item
from lvlm_guard.bench.running.batches import Batch
from lvlm_guard.deprecation import moved_names, warn_renamed
from lvlm_guard.errors import InputError

MANIFEST = "manifest.json"
ITEMS = "items.jsonl"
LOCK = "lock"
FORMAT = 1
UNCOMPARED = ("data", "hardware.threads")
"""What may differ between the parts of a run: where the data lie, and how many threads work."""

SHOWN = 3
"""How many differences an error names."""


@dataclass(frozen=True)
class Answer:
    """The answer of one system to one item, with the fields of `AnsweredItem`."""

    id: str
    text: str
    tokens: int
    margin: float | None


@dataclass(frozen=True)
class SystemRefusal:
    """Why a system stopped answering a suite.

    Args:
        batch: The first batch without answers.
        error: Class of the error.
        reason: Its message.
    """

    batch: int
    error: str
    reason: str


class Shard:
    """The answers of one system to one suite. Whole batches are kept; the rest is dropped and answered again."""

    def __init__(self, folder: Path, system: str, suite: str, batches: Sequence[Batch]) -> None:
        self._answers, self._costs, self._refusal = _paths(folder, system, suite)
        for path in (self._answers, self._costs):
            path.parent.mkdir(parents=True, exist_ok=True)
        self._refusal.unlink(missing_ok=True)
        self.finished = self._recover(batches)
        """Batches that need not be done again."""

    def _recover(self, batches: Sequence[Batch]) -> int:
        answers, costs = files.whole_lines(self._answers), files.whole_lines(self._costs)
        self._check_order(answers, [item.id for batch in batches for item in batch.items])
        whole, finished = 0, 0
        for batch in batches:
            if whole + len(batch.items) > len(answers):
                break
            whole += len(batch.items)
            finished += 1
        files.cut(self._answers, sum(map(len, answers[:whole])))
        files.cut(self._costs, sum(map(len, costs[:finished])))
        return finished

    def _check_order(self, lines: Sequence[bytes], expected: Sequence[str]) -> None:
        ids = [answer.id for answer in _answers(self._answers, lines)]
        if ids != expected[: len(ids)]:
            raise InputError(
                f"{self._answers} does not hold the answers of this run in their order. Remove that file, and the same "
                "command answers its items again."
            )

    def append(self, answers: Sequence[Answer], cost: Mapping[str, Any]) -> None:
        """Keep the answers to the next batch; they count once the last of them is on the disk."""
        files.append(self._costs, _line(cost))
        files.append(self._answers, b"".join(_line(dataclasses.asdict(answer)) for answer in answers))

    def refuse(self, refusal: SystemRefusal) -> None:
        """Keep why there are no more answers."""
        self._refusal.parent.mkdir(parents=True, exist_ok=True)
        files.write_whole(self._refusal, _pretty(dataclasses.asdict(refusal)))


@contextmanager
def open_run(folder: Path, manifest: Mapping[str, Any], items: Mapping[str, Sequence[Item]]) -> Iterator[None]:
    """Start a run in a folder, or resume the one there; no other process may use it until the block ends.

    Raises:
        InputError: The folder holds something else, a run with other settings, or is in use.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out must be a folder, but {folder} is a file. Name another one.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"The folder {folder} cannot be made: {error.strerror or error}. Name another one.") from error
    if not (folder / MANIFEST).exists():
        _refuse_strangers(folder)
    with files.hold_lock(folder / LOCK):
        for draft in folder.rglob(f".*{files.DRAFT}"):
            draft.unlink()
        written = json.loads(json.dumps(manifest, default=str))
        if (folder / MANIFEST).exists():
            _refuse_another(folder, written)
        else:
            files.write_whole(folder / ITEMS, b"".join(_item_lines(items)))
            files.write_whole(folder / MANIFEST, _pretty(written))
        yield


def _refuse_strangers(folder: Path) -> None:
    strangers = sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.name not in (LOCK, ITEMS) and not entry.name.endswith(files.DRAFT)
    )
    if strangers:
        raise InputError(f"{folder} holds {strangers[0]} but no {MANIFEST}, so it is no run. Name an empty folder.")


def _refuse_another(folder: Path, manifest: Mapping[str, Any]) -> None:
    existing = _read_json(folder / MANIFEST)
    differences = [difference for difference in _differences(existing, manifest) if difference[0] not in UNCOMPARED]
    if differences:
        examples = "; ".join(f"{path}: {there} there, {here} here" for path, there, here in differences[:SHOWN])
        more = f"; and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
        raise InputError(
            f"{folder} holds a run with other settings: {examples}{more}. Repeat its settings, or name another folder."
        )


def _differences(there: Any, here: Any, path: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield (path, value there, value here) wherever two JSON values differ."""
    if isinstance(there, dict) and isinstance(here, dict):
        for name in dict.fromkeys((*there, *here)):
            inner = f"{path}.{name}" if path else name
            if name not in there or name not in here:
                yield inner, _short(there.get(name, "nothing")), _short(here.get(name, "nothing"))
            else:
                yield from _differences(there[name], here[name], inner)
    elif isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        for index, (left, right) in enumerate(zip(there, here, strict=True)):
            yield from _differences(left, right, f"{path}[{index}]")
    elif there != here:
        yield path, _short(there), _short(here)


def _short(value: Any, most: int = 60) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


@dataclass(frozen=True)
class Record:
    """The content of the folder of a run, finished or not.

    Args:
        folder: The folder.
        manifest: What the run is.
        items: Items by suite, in their order.
    """

    folder: Path
    manifest: Mapping[str, Any]
    items: Mapping[str, Sequence[Item]]

    @property
    def systems(self) -> tuple[str, ...]:
        """Names of the systems, in the order of the run."""
        return tuple(self.manifest["systems"])

    @property
    def suites(self) -> tuple[str, ...]:
        """Names of the suites, in the order of the run."""
        return tuple(self.manifest["suites"])

    @property
    def data(self) -> Path | None:
        """Where the run found the suites' files."""
        return Path(self.manifest["data"]) if self.manifest["data"] else None

    def read_answers(self, system: str, suite: str) -> list[AnsweredItem]:
        """Return the answers of a system so far, in the order of the items."""
        path, _, _ = _paths(self.folder, system, suite)
        by_id = {answer.id: answer for answer in _answers(path, files.whole_lines(path))}
        return [
            AnsweredItem(item, by_id[item.id].text, by_id[item.id].tokens, by_id[item.id].margin)
            for item in self.items[suite]
            if item.id in by_id
        ]

    def said(self, system: str, suite: str) -> list[AnsweredItem]:
        """Return what `read_answers` returns; deprecated."""
        warn_renamed("Record.said", "Record.read_answers", stacklevel=3)
        return self.read_answers(system, suite)

    def costs(self, system: str, suite: str) -> list[dict[str, Any]]:
        """Return what each batch cost, in the order of the batches."""
        _, path, _ = _paths(self.folder, system, suite)
        return [_parsed(path, line) for line in files.whole_lines(path)]

    def refusal(self, system: str, suite: str) -> SystemRefusal | None:
        """Return why a system could not answer a suite; None where it could."""
        _, _, path = _paths(self.folder, system, suite)
        return SystemRefusal(**_read_json(path)) if path.exists() else None


def read(folder: Path) -> Record:
    """Read the folder of a run.

    Raises:
        InputError: It is none, or a file of it cannot be read.
    """
    if not (folder / MANIFEST).is_file():
        raise InputError(
            f"{folder} holds no {MANIFEST}, so it is no run. Begin one: lvlm-guard bench run ... --out DIR."
        )
    manifest = _read_json(folder / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise InputError(
            f"{folder} holds a run of format {manifest.get('format')}; this version reads format {FORMAT}."
        )
    items: dict[str, list[Item]] = {suite: [] for suite in manifest["suites"]}
    for line in files.whole_lines(folder / ITEMS):
        values = _parsed(folder / ITEMS, line)
        items[values.pop("suite")].append(Item(**values))
    return Record(folder, manifest, items)


def digest(items: Sequence[Item]) -> dict[str, str]:
    """Hash the ids, the prompts and all fields of some items in their order, with SHA-256."""
    ids, prompts, lines = ([f(item) for item in items] for f in (_id, _prompt, _whole))
    return {
        name: hashlib.sha256("\n".join(values).encode("utf-8")).hexdigest()
        for name, values in (("ids_sha256", ids), ("prompts_sha256", prompts), ("items_sha256", lines))
    }


def _id(item: Item) -> str:
    return item.id


def _prompt(item: Item) -> str:
    return json.dumps(item.prompt)


def _whole(item: Item) -> str:
    return json.dumps(_to_plain(item), sort_keys=True)


def _to_plain(item: Item) -> dict[str, Any]:
    return {field.name: getattr(item, field.name) for field in dataclasses.fields(item)} | {"extra": dict(item.extra)}


def _item_lines(items: Mapping[str, Sequence[Item]]) -> Iterator[bytes]:
    return (_line({"suite": suite, **_to_plain(item)}) for suite, suite_items in items.items() for item in suite_items)


def _paths(folder: Path, system: str, suite: str) -> tuple[Path, Path, Path]:
    return (
        folder / "answers" / system / f"{suite}.jsonl",
        folder / "costs" / system / f"{suite}.jsonl",
        folder / "refusals" / system / f"{suite}.json",
    )


def _answers(path: Path, lines: Sequence[bytes]) -> list[Answer]:
    try:
        return [Answer(**_parsed(path, line)) for line in lines]
    except TypeError as error:
        raise _damaged(path, error) from error


def _line(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, ensure_ascii=False) + "\n").encode("utf-8")


def _pretty(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode("utf-8")


def _parsed(path: Path, line: bytes) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(line)
    except ValueError as error:
        raise _damaged(path, error) from error
    return value


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(f"{path} is damaged: {error}. Remove that file, and the same command makes it again.")


def _read_json(path: Path) -> dict[str, Any]:
    return _parsed(path, path.read_bytes())


__getattr__ = moved_names(__name__, {"opened": "lvlm_guard.bench.running.store:open_run"})
