"""Every kernel against the published eager chain, a compiled one and the bytes it must move, by CUDA events."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from chains import LAYERS, TASKS, Inputs, Task
from lvlm_guard_kernels import record_paths
from measuring import Budget, Results, Row, copy_bandwidth, durations, machine, read_clocks, spread, versions
from variants import DID_NOT_RUN, OUT_OF_MEMORY, OUT_OF_TIME

ROWS = (1, 8, 64, 512)
VOCABULARIES = (32000, 151936)
COMPILED = ((1, 151936), (8, 151936), (64, 151936))
TOLERANCE = 1e-3
REPEATS, CALLS, GRAPH_CALLS = 100, 10, 20
WARM_UP_CALLS, WARM_UP_SECONDS = 25, 0.05
"""Least calls and least time of a warm-up: compilers, allocators and clocks settle."""
COPIED, FLUSHED = 2**30, 2**28
COLD, WARM, GRAPH = "cold", "warm", "graph"
SHOWN = (
    "kernel", "rows", "vocabulary", "provider", "mode", "time_us", "floor_us", "time_over_floor", "time_over_published",
    "largest_error", "status",
)  # fmt: skip
NOTES = (
    (
        "combine: (1 + alpha) main - alpha branch on tokens within ln beta of main's best, dense fp32 out; "
        f"layer_divergence: main against {LAYERS} layers as DoLa's released code has it; select: combine, then "
        "temperature, top-k, top-p and a draw, ids out. Logits are bf16; published chains stay in bf16 as far as they do "
        "when released, which their largest error shows."
    ),
    (
        "Modes: `cold` replays a CUDA graph that overwrites the L2 cache and calls once, less the median of a graph that only "
        f"overwrites, so that nothing of the host is in it; `warm` calls {CALLS} times in a row and divides, so small sizes show "
        f"what launching costs; `graph` replays a CUDA graph of {GRAPH_CALLS} calls and divides."
    ),
    (
        "Providers take turns within a round, in an order that rotates; before the first round each is called for at least "
        f"{WARM_UP_CALLS} times and {WARM_UP_SECONDS:g} s. Clocks, temperature and power are read before and after each size."
    ),
    (
        "The floor is arithmetic on a measurement: bytes that must be moved (main once, layers once, fp32 results once; "
        "a branch is needed at the few survivors only) over the copy bandwidth measured here; caches can beat it where "
        "nothing is overwritten."
    ),
    (
        "largest error: against the formula in float64; of combine over surviving tokens, of layer_divergence relative and "
        f"over the first rows; of select it is infinite if an id does not survive. Above {TOLERANCE:g} only published "
        "chains are timed."
    ),
    "torch.compile has three sizes, for the time it takes to compile.",
)


@dataclass(frozen=True)
class Provider:
    """A way to compute a task.

    Args:
        name: What the rows call it.
        call: Takes the task's inputs.
        kernels: `LVLM_GUARD_KERNELS` while it runs.
        is_published: Whether it is a published chain, of which an error above the tolerance is no failure.
    """

    name: str
    call: Callable[..., Any]
    kernels: str = "auto"
    is_published: bool = False


def list_providers(task: Task, size: tuple[int, int], device: torch.device, *, tiny: bool) -> list[Provider]:
    """Return what is timed at one size; published chains come first, and Triton only where there is a GPU."""
    providers = [Provider(name, call, is_published=True) for name, call in task.published.items()]
    if task.compilable and (tiny or size in COMPILED):
        backend = "eager" if tiny else "inductor"
        compiled = torch.compile(task.compilable, dynamic=False, backend=backend)
        name = f"torch.compile ({backend})"
        providers.append(Provider(name, compiled, is_published=task.compilable in task.published.values()))
    ours = ["torch", "triton"] if device.type == "cuda" else ["torch"]
    return [*providers, *(Provider(name, task.ours, name) for name in ours)]


@contextlib.contextmanager
def use_kernels(provider: str) -> Iterator[None]:
    """Run an implementation of the kernels: `auto`, `torch` or `triton`."""
    before = os.environ.get("LVLM_GUARD_KERNELS")
    os.environ["LVLM_GUARD_KERNELS"] = provider
    try:
        yield
    finally:
        if before is None:
            del os.environ["LVLM_GUARD_KERNELS"]
        else:
            os.environ["LVLM_GUARD_KERNELS"] = before


def run(out: Path, device: torch.device, *, tiny: bool, seconds: float) -> Results:
    """Time every provider of every task at every size and in every mode."""
    budget = Budget(seconds)
    bandwidth = copy_bandwidth(device, COPIED // 64 if tiny else COPIED)
    every = {"gpu_name": machine(device)["gpu_name"], **versions(), "dtype": "bfloat16"}
    about = {**machine(device), "dtype": "bfloat16", "copy_bandwidth_gb_per_s": bandwidth / 1e9}
    results = Results(out, "kernels", "Kernels of the logit path", about, SHOWN, every, notes=[*NOTES])
    sizes = list(itertools.product((1, 8), (512, 1000)) if tiny else itertools.product(ROWS, VOCABULARIES))
    for number, task in enumerate(TASKS):
        share = budget.share(len(TASKS) - number)
        for size in sizes:
            _measure_size(results, task, size, device, bandwidth, share, tiny=tiny)
            results.write()
    return results


def _measure_size(
    results: Results,
    task: Task,
    size: tuple[int, int],
    device: torch.device,
    bandwidth: float,
    budget: Budget,
    *,
    tiny: bool,
) -> None:
    """Add the rows of one task at one size."""
    torch.compiler.reset()
    inputs = task.draw(*size, device, torch.bfloat16)
    floor = task.least_bytes(inputs) / bandwidth * 1e6
    shared = {"kernel": task.name, "rows": size[0], "vocabulary": size[1], "floor_us": floor}
    before = read_clocks(device)
    racers = [Racer(task, inputs, provider, budget) for provider in list_providers(task, size, device, tiny=tiny)]
    rows = [
        {"provider": racer.provider.name, "mode": mode, **racer.facts, **timed}
        for mode in ((COLD, WARM, GRAPH) if device.type == "cuda" else (WARM,))
        for racer, timed in zip(racers, race(racers, mode, device, 5 if tiny else REPEATS), strict=True)
    ]
    chain = next(racer.provider.name for racer in racers if racer.provider.is_published)
    clocks = {"clocks_before": before, "clocks_after": read_clocks(device)}
    for row in rows:
        results.add(**shared, **row, **compare(row, rows, chain, floor), **clocks)


def compare(row: Row, rows: list[Row], chain: str, floor: float) -> Row:
    """Return a row's ratios to the floor, and to the published chain of this name in the same mode; none where one did not run."""
    time = row.get("time_us_p50")
    published = [
        other.get("time_us_p50") for other in rows if (other["provider"], other["mode"]) == (chain, row["mode"])
    ]
    return {
        "time_over_floor": time and time / floor,
        "time_over_published": time / published[0] if time and published and published[0] else None,
    }


class Racer:
    """One provider with its inputs: what it computes is checked at once; if that fails it is not timed.

    Args:
        task: What is computed.
        inputs: The task's inputs.
        provider: How it is computed.
        budget: Time that is left.
    """

    def __init__(self, task: Task, inputs: Inputs, provider: Provider, budget: Budget) -> None:
        self.provider = provider
        self._inputs = inputs
        with use_kernels(provider.kernels):
            self.facts = _check(task, inputs, provider) if budget.left else {"status": OUT_OF_TIME}

    @property
    def runs(self) -> bool:
        """Whether there is something to time."""
        return "status" not in self.facts

    def call(self) -> Any:
        """Compute once."""
        return self.provider.call(*self._inputs)

    def warm_up(self, device: torch.device) -> None:
        """Call until compilers, allocators and clocks have settled."""
        budget = Budget(WARM_UP_SECONDS)
        with use_kernels(self.provider.kernels):
            durations(self.call, device, WARM_UP_CALLS)
            while budget.left:
                durations(self.call, device, WARM_UP_CALLS)


def race(racers: list[Racer], mode: str, device: torch.device, repeats: int) -> list[Row]:
    """Return the times of each racer in one mode, or a status; they take turns, so that a change of clocks meets all of them."""
    flush = torch.empty(FLUSHED, dtype=torch.uint8, device=device) if mode == COLD else None
    statuses: dict[int, str] = {}
    laps: dict[int, Callable[[], object]] = {}
    for number, racer in enumerate(racers):
        if racer.runs:
            made = _attempt(functools.partial(_make_lap, racer, mode, device, flush))
            if isinstance(made, str):
                statuses[number] = made
            else:
                laps[number] = made
    if flush is not None and laps:
        laps[FLUSH_ALONE] = _capture(flush.zero_, 1)
    times = _run_laps(racers, laps, device, repeats)
    less = statistics.median(times.pop(FLUSH_ALONE)) if FLUSH_ALONE in times else 0.0
    calls = {COLD: 1, WARM: CALLS, GRAPH: GRAPH_CALLS}[mode]
    return [
        {"status": statuses[number]}
        if number in statuses
        else spread("time_us", [(time - less) * 1e3 / calls for time in times.get(number, [])])
        for number in range(len(racers))
    ]


FLUSH_ALONE = -1


def _make_lap(racer: Racer, mode: str, device: torch.device, flush: torch.Tensor | None) -> Callable[[], object]:
    """Warm a racer up, and return what is timed: calls in a row, or the replay of a graph."""
    racer.warm_up(device)
    with use_kernels(racer.provider.kernels):
        if mode == GRAPH:
            return _capture(racer.call, GRAPH_CALLS)
        if flush is None:
            return lambda: [racer.call() for _ in range(CALLS)]
        return _capture(lambda: (flush.zero_(), racer.call()), 1)


def _capture(call: Callable[[], object], calls: int) -> Callable[[], object]:
    """Capture calls as a CUDA graph, and return its replay."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            call()
    return graph.replay


def _run_laps(
    racers: list[Racer], laps: dict[int, Callable[[], object]], device: torch.device, repeats: int
) -> dict[int, list[float]]:
    """Return the milliseconds of every lap by racer; the order within a round rotates."""
    times: dict[int, list[float]] = {number: [] for number in laps}
    order = list(laps)
    for _ in range(repeats):
        for number in order:
            with use_kernels(racers[number].provider.kernels if number >= 0 else "auto"):
                times[number] += durations(laps[number], device, 1)
        order = [*order[1:], *order[:1]]
    return times


def _check(task: Task, inputs: Inputs, provider: Provider) -> Row:
    """Return what ran and how far its result is from the formula, or a status where nothing is worth timing."""

    def compute() -> Row:
        with record_paths() as ran:
            result = provider.call(*inputs)
        return {"ran": ", ".join(dict.fromkeys(ran)) or None, "largest_error": task.error(inputs, result)}

    facts: Row | str = _attempt(compute)
    if isinstance(facts, str):
        return {"status": facts}
    is_wrong = not provider.is_published and not facts["largest_error"] <= TOLERANCE
    return facts | ({"status": "failed: wrong result"} if is_wrong else {})


def _attempt(call: Callable[[], Any]) -> Any:
    """Return what a call returns, or as text why it did not: the row says so, the others still count, and the part fails."""
    try:
        return call()
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return OUT_OF_MEMORY
    except Exception as problem:  # noqa: BLE001 - a compiler may be missing, or something cannot be captured
        with contextlib.suppress(Exception):
            torch.cuda.synchronize()
        return f"{DID_NOT_RUN}: {type(problem).__name__}: {(str(problem).splitlines() or [''])[0][:120]}"
