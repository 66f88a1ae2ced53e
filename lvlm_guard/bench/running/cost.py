"""What a way to generate costs, measured beside plain generate in the same run.

Every round gives each way one turn on the same batch, the first moving on by one, so that a machine that slows down slows
all of them; ratios are formed within a round. Every call generates the same number of tokens, greedily.
"""

from __future__ import annotations

import functools
import gc
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lvlm_guard.call.plain import find_answers
from lvlm_guard.call.report import Forwards, Report
from lvlm_guard.errors import InputError
from lvlm_guard.guard import Guard
from lvlm_guard.outputs import measure_prompt, sequences

PLAIN = "plain"
WARM_UP_TOKENS = 3
CUDA_PEAK = "CUDA memory allocated, weights included"
RESIDENT_GROWTH = "growth of the resident set during the call"
NOT_MEASURED = "not measured"

Generate = Callable[..., Any]
Batch = Mapping[str, Any]


@dataclass(frozen=True)
class Spread:
    """The 20th, 50th and 80th percentile of repeated measurements."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise at least one value."""
        low, median, high = np.percentile(values, (20, 50, 80))
        return cls(float(low), float(median), float(high))


@dataclass(frozen=True)
class Cost:
    """What a way to generate costs. Ratios are to plain generate in the same round on the same batch; 1 is plain.

    Args:
        name: What it was called.
        calls: Measured calls.
        tokens: Generated tokens per row, mean over the calls.
        first_ms: Milliseconds from the call to the first token: preparation, image encoding, prefill of main and branches.
            None where a call had no single pass (an answer drafted and revised).
        token_ms: Milliseconds per token after the first, mean of a call; None as for `first_ms`.
        call_ms: Milliseconds of a whole call.
        tokens_per_second: Generated tokens of all rows over the time of the whole call.
        first_ratio: Time to the first token over plain's.
        token_ratio: Time per token after the first over plain's.
        call_ratio: Time of the whole call over plain's, whatever number of tokens came out.
        forwards: Forwards of the decoder per forward of plain, prefill and decode apart, from the guard's own report, mean
            over the calls; None for a callable that is neither `plain` nor a guard's generate.
        rows_per_forward: Rows of a decode forward over plain's; branches decoded as one batch show here. None as above.
        peak_bytes: Largest peak of a call in bytes; what it counts is in `memory`. None where it could not be measured.
        memory: `CUDA_PEAK`, `RESIDENT_GROWTH` or `NOT_MEASURED`. Growth of the resident set leaves out the weights, and
            memory that earlier calls gave back to the allocator but not to the system: it is a lower bound.
    """

    name: str
    calls: int
    tokens: float
    first_ms: Spread | None
    token_ms: Spread | None
    call_ms: Spread
    tokens_per_second: Spread
    first_ratio: Spread | None
    token_ratio: Spread | None
    call_ratio: Spread
    forwards: Forwards | None
    rows_per_forward: float | None
    peak_bytes: int | None
    memory: str


def measure_costs(
    generates: Mapping[str, Generate],
    batches: Sequence[Batch],
    *,
    new_tokens: int = 32,
    rounds: int = 5,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Cost]:
    """Measure several ways to generate against plain generate.

    Args:
        generates: Ways by name; `plain` is the model's own generate, the others usually `guard.generate`.
        batches: Model inputs with `input_ids`; all batches have a turn in every round.
        new_tokens: Tokens per call, at least 2; no call ends before.
        rounds: Rounds, after one short call of each way that is not counted; at least 1.
        settings: Further arguments of generate, the same for all; they may replace the lengths set here.

    Returns:
        One cost per way, in the order given.

    Raises:
        InputError: No `plain`, no batch, or numbers too small to measure with.
    """
    arguments = dict(settings or {})
    _refuse(generates, batches, arguments, (new_tokens, rounds))
    for generate in generates.values():
        _turn(generate, batches[0], _lengths(min(WARM_UP_TOKENS, new_tokens)) | arguments)
    turns: dict[str, list[_Turn]] = {name: [] for name in generates}
    for number, (_, batch) in enumerate(itertools.product(range(rounds), batches)):
        for name in _rotated(list(generates), number):
            turns[name].append(_turn(generates[name], batch, _lengths(new_tokens) | arguments))
    return {name: _cost(name, measured, turns[PLAIN]) for name, measured in turns.items()}


def _refuse(
    generates: Mapping[str, Generate], batches: Sequence[Batch], settings: Mapping[str, Any], size: tuple[int, int]
) -> None:
    new_tokens, rounds = size
    if PLAIN not in generates:
        raise InputError(
            f"measure_costs compares with {PLAIN!r}: add {{{PLAIN!r}: model.generate}}, got {list(generates)}."
        )
    if not batches or any(not isinstance(batch.get("input_ids"), Tensor) for batch in batches):
        raise InputError("measure_costs needs at least one batch of model inputs, each with a tensor input_ids.")
    if "stopping_criteria" in settings:
        raise InputError("measure_costs times tokens through stopping_criteria: leave it out of the settings.")
    if new_tokens < 2 or rounds < 1:  # noqa: PLR2004 - a first token and one after it
        raise InputError(f"measure_costs needs new_tokens >= 2 and rounds >= 1, got {new_tokens} and {rounds}.")


def _lengths(tokens: int) -> dict[str, Any]:
    return {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}


def _rotated(names: Sequence[str], number: int) -> list[str]:
    first = number % len(names)
    return [*names[first:], *names[:first]]


@dataclass(frozen=True)
class _Turn:
    """One call: times in milliseconds, tokens per row, the guard's report and the peak of memory in bytes."""

    first: float | None
    call: float
    tokens: int
    rows: int
    report: Report | None
    peak: int | None
    memory: str

    @property
    def per_token(self) -> float | None:
        return None if self.first is None else (self.call - self.first) / (self.tokens - 1)

    @property
    def speed(self) -> float:
        return self.rows * self.tokens / (self.call / 1e3)


def _turn(generate: Generate, batch: Batch, settings: Mapping[str, Any]) -> _Turn:
    """Time one call."""
    ids: Tensor = batch["input_ids"]
    clock, memory = _Clock(ids.device), _Memory(ids.device)
    stamps = _Stamps(clock)
    memory.begin()
    clock.wait()
    start = clock.mark()
    with torch.no_grad():
        output = sequences(generate(**batch, **settings, stopping_criteria=[stamps]))
    end = clock.mark()
    clock.wait()
    guard = _guard_of(generate)
    tokens = output.shape[1] - (
        _find_start(generate, {**batch, **settings}, output) if guard is None else guard.report.answer_start
    )
    in_one_pass = len(stamps.marks) == tokens > 1
    return _Turn(
        first=clock.between(start, stamps.marks[0]) if in_one_pass else None,
        call=clock.between(start, end),
        tokens=tokens,
        rows=output.shape[0],
        report=None if guard is None else guard.report,
        peak=memory.peak(),
        memory=memory.kind,
    )


def _find_start(generate: Generate, arguments: Mapping[str, Any], output: Tensor) -> int:
    """Return where answers begin in what a way to generate without a guard returned."""
    model = _owner_of(generate)
    if hasattr(model, "config"):
        return find_answers(model, generate, arguments, output)
    return measure_prompt(output, [arguments["input_ids"]]) or 0


def _guard_of(generate: Generate) -> Guard | None:
    owner = _owner_of(generate)
    return owner if isinstance(owner, Guard) else None


def _owner_of(generate: Generate) -> Any:
    while isinstance(generate, functools.partial):
        generate = generate.func
    return getattr(generate, "__self__", None)


@dataclass
class _Stamps:
    """A stopping criterion that marks the moment at which every token was chosen, and never stops."""

    clock: _Clock
    marks: list[Any] = field(default_factory=list)

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:  # noqa: ARG002 - generate passes scores
        self.marks.append(self.clock.mark())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


@dataclass(frozen=True)
class _Clock:
    """Marks on a time line: CUDA events on a GPU, for which nothing waits, else wall-clock times."""

    device: torch.device

    def mark(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def between(self, start: Any, end: Any) -> float:
        """Return the milliseconds; call `wait` first."""
        if self.device.type == "cuda":
            return float(start.elapsed_time(end))
        return float((end - start) * 1e3)


class _Memory:
    """The peak of one call: allocated memory on a GPU, on a CPU what the kernel says of this process.

    On Linux the high-water mark of the resident set can be reset by the process itself; elsewhere nothing is measured.

    Args:
        device: The device that generates.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = 0
        self.kind = CUDA_PEAK if device.type == "cuda" else NOT_MEASURED

    def begin(self) -> None:
        """Forget earlier peaks, and what nobody holds any more: freed later, it would hide as much growth."""
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        elif self._device.type == "cpu" and _reset_high_water():
            self.kind = RESIDENT_GROWTH
            self._before = _resident_bytes("VmRSS")

    def peak(self) -> int | None:
        """Return the bytes since `begin`, or None."""
        if self.kind == CUDA_PEAK:
            return int(torch.cuda.max_memory_allocated(self._device))
        return max(_resident_bytes("VmHWM") - self._before, 0) if self.kind == RESIDENT_GROWTH else None


def _reset_high_water() -> bool:
    """Set the high-water mark of the resident set back to its present size; whether the system allows that."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _resident_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    entry = next(line for line in lines if line.startswith(f"{name}:"))
    return int(entry.split()[1]) * 1024


def _cost(name: str, turns: Sequence[_Turn], plain: Sequence[_Turn]) -> Cost:
    pairs = list(zip(turns, plain, strict=True))
    peaks = [turn.peak for turn in turns if turn.peak is not None]
    forwards, rows = _forwards(name, turns)
    return Cost(
        name=name,
        calls=len(turns),
        tokens=float(np.mean([turn.tokens for turn in turns])),
        first_ms=_spread(turn.first for turn in turns),
        token_ms=_spread(turn.per_token for turn in turns),
        call_ms=Spread.of([turn.call for turn in turns]),
        tokens_per_second=Spread.of([turn.speed for turn in turns]),
        first_ratio=_spread(_ratio(turn.first, base.first) for turn, base in pairs),
        token_ratio=_spread(_ratio(turn.per_token, base.per_token) for turn, base in pairs),
        call_ratio=Spread.of([turn.call / base.call for turn, base in pairs]),
        forwards=forwards,
        rows_per_forward=rows,
        peak_bytes=max(peaks, default=None),
        memory=turns[0].memory,
    )


def _forwards(name: str, turns: Sequence[_Turn]) -> tuple[Forwards | None, float | None]:
    """Average forwards and rows per forward over plain's."""
    reports = [turn.report for turn in turns if turn.report is not None]
    if not reports:
        return (Forwards(1.0, 1.0), 1.0) if name == PLAIN else (None, None)
    prefill, decode, rows = np.mean(
        [(report.forwards.prefill, report.forwards.decode, report.rows_per_forward) for report in reports], axis=0
    )
    return Forwards(float(prefill), float(decode)), float(rows)


def _ratio(value: float | None, base: float | None) -> float | None:
    return None if value is None or base is None else value / base


def _spread(values: Iterator[float | None]) -> Spread | None:
    """Summarise all values; None where one of them is missing."""
    collected = list(values)
    defined = [value for value in collected if value is not None]
    return Spread.of(defined) if len(defined) == len(collected) else None
