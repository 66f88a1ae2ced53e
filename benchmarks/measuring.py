"""Time, machine and tables: what every benchmark script shares."""

from __future__ import annotations

import csv
import importlib.metadata
import io
import json
import math
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

PERCENTILES = (20, 50, 80)
Row = dict[str, Any]


class Budget:
    """Seconds that a script may still spend.

    Args:
        seconds: The whole of it, counted from now.
    """

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds left; never negative."""
        return max(self._end - time.monotonic(), 0.0)

    def share(self, parts: int) -> Budget:
        """An equal part of what is left, when `parts` parts are still to come."""
        return Budget(self.left / parts)


class Clock:
    """Marks on a time line: CUDA events where the device is a GPU (nothing waits for them), else times of the machine.

    Args:
        device: The device whose work is timed.
        read: Reads the time without a GPU, in seconds.
    """

    def __init__(self, device: torch.device, read: Callable[[], float] = time.perf_counter) -> None:
        self._device = device
        self._read = read

    def mark(self) -> Any:
        """Mark the present moment of the device's work."""
        if self._device.type != "cuda":
            return self._read()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call] # untyped in torch
        event.record()
        return event

    def wait(self) -> None:
        """Wait until everything asked of the device is done."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def between(self, start: Any, end: Any) -> float:
        """Milliseconds from one mark to another; call `wait` first."""
        if self._device.type != "cuda":
            return float((end - start) * 1e3)
        return float(start.elapsed_time(end))


def durations(function: Callable[[], object], device: torch.device, repeats: int, before: Any = None) -> list[float]:
    """Milliseconds of each of `repeats` calls; `before`, if given, is called ahead of each and not timed."""
    clock = Clock(device)
    marks = []
    clock.wait()
    for _ in range(repeats):
        if before is not None:
            before()
        start = clock.mark()
        function()
        marks.append((start, clock.mark()))
    clock.wait()
    return [clock.between(start, end) for start, end in marks]


def copy_bandwidth(device: torch.device, size: int) -> float:
    """Bytes per second, read and written together, of copies of `size` bytes on the device (median)."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    durations(lambda: target.copy_(source), device, 3)
    milliseconds = statistics.median(durations(lambda: target.copy_(source), device, 15))
    return 2 * size / (milliseconds / 1e3)


def spread(name: str, values: Sequence[float]) -> Row:
    """The 20th, 50th and 80th percentile as columns `name_p20`, `name_p50`, `name_p80`; empty without values."""
    if not values:
        return {f"{name}_p{percentile}": None for percentile in PERCENTILES}
    return {f"{name}_p{percentile}": float(np.percentile(values, percentile)) for percentile in PERCENTILES}


def machine(device: torch.device) -> Row:
    """What ran the benchmark."""
    return {
        "gpu_name": torch.cuda.get_device_name(device) if device.type == "cuda" else "none (cpu)",
        "cuda": torch.version.cuda or "none",
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "python": platform.python_version(),
        **versions(),
    }


CLOCKS = "clocks.sm", "clocks.mem", "temperature.gpu", "power.draw"


def read_clocks(device: torch.device) -> str:
    """Clocks in MHz, temperature in °C and power in W of a GPU as its driver gives them at this moment, or why there are none."""
    if device.type != "cuda":
        return "none (cpu)"
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    chosen = [] if uuid is None else [f"--id=GPU-{uuid}"]
    command = ["nvidia-smi", *chosen, f"--query-gpu={','.join(CLOCKS)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError) as problem:
        return f"unknown ({type(problem).__name__})"
    return done.stdout.strip()


def versions() -> Row:
    """Versions of what the numbers depend on; `none` where a package is not installed."""
    return {name: _version(name) for name in ("torch", "transformers", "triton")}


def _version(package: str) -> str:
    if package == "torch":
        return str(torch.__version__)
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


@dataclass
class Results:
    """Rows of one benchmark, written as JSON and Markdown, and as CSV on request.

    Args:
        folder: Where the files go.
        name: Stem of their names.
        title: Headline of the Markdown page.
        about: What holds for all rows: machine, versions, shapes.
        shown: Columns of the Markdown table; the other files hold all.
        every: Columns repeated on every row, so that a row stands alone.
        csv: Whether to write a CSV file as well.
    """

    folder: Path
    name: str
    title: str
    about: Row
    shown: Sequence[str]
    every: Row = field(default_factory=dict)
    csv: bool = True
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, **row: Any) -> Row:
        """Add a row; `status` is `ok` unless said otherwise."""
        finite = {name: str(value) if _is_infinite(value) else value for name, value in row.items()}
        self.rows.append({**finite, "status": row.get("status", "ok"), **self.every})
        return self.rows[-1]

    def write(self) -> None:
        """Write all files, each at once: a reader never sees half of one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        whole = {"about": self.about, "rows": self.rows, "notes": self.notes}
        write_at_once(self.folder / f"{self.name}.json", json.dumps(whole, indent=1, allow_nan=False) + "\n")
        write_at_once(self.folder / f"{self.name}.md", self.markdown())
        if self.csv:
            write_at_once(self.folder / f"{self.name}.csv", _as_csv(self.rows))

    def markdown(self) -> str:
        """A page with what holds for all rows, the table and the notes."""
        about = [f"- {name.replace('_', ' ')}: {_text(value)}" for name, value in self.about.items()]
        notes = [f"- {note}" for note in self.notes]
        parts = [f"# {self.title}", "\n".join(about), table(self.rows, self.shown), "\n".join(notes)]
        return "\n\n".join(part for part in parts if part) + "\n"


def table(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """A Markdown table of some columns; `name` stands for the column, or for `name_p20/p50/p80` as `50 (20 to 80)`."""
    lines = [[_cell(row, column) for column in columns] for row in rows]
    head = [column.replace("_", " ") for column in columns]
    widths = [max(len(line[index]) for line in [head, *lines]) for index in range(len(head))]
    rule = ["-" * width for width in widths]
    return "\n".join(
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |"
        for line in [head, rule, *lines]
    )


def _cell(row: Mapping[str, Any], column: str) -> str:
    if f"{column}_p50" not in row:
        return _text(row.get(column))
    low, middle, high = (row[f"{column}_p{percentile}"] for percentile in PERCENTILES)
    return "-" if middle is None else f"{_text(middle)} ({_text(low)} to {_text(high)})"


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1 or abs(value) >= 1e5 else f"{value:.5g}"
    return ", ".join(_text(one) for one in value) if isinstance(value, list) else str(value)


def _as_csv(rows: Sequence[Row]) -> str:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _is_infinite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def write_at_once(path: Path, text: str) -> None:
    """Write to a temporary file beside `path`, then rename it."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)
