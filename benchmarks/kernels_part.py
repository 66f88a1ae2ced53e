"""Every kernel against the published eager chain, a compiled one and the bytes it must move, by CUDA events."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from chains import LAYERS, TASKS, Inputs, Task
from lvlm_guard_kernels import record_paths
from measuring import Budget, Results, Row, copy_bandwidth, durations, machine, spread, versions
from variants import OUT_OF_MEMORY, OUT_OF_TIME

ROWS = (1, 8, 64, 512)
VOCABULARIES = (32000, 151936)
COMPILED = ((1, 151936), (8, 151936), (64, 151936))
TOLERANCE = 1e-3
REPEATS, GRAPH_CALLS, WARM_UP = 100, 20, 3
COPIED, FLUSHED = 2**30, 2**28
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
        "Modes: `cold` overwrites the L2 cache before every call; `warm` calls again and again, so small sizes show what "
        f"launching costs; `graph` replays a CUDA graph of {GRAPH_CALLS} calls and divides."
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
        exact: Whether an error above the tolerance is a failure.
    """

    name: str
    call: Callable[..., Any]
    kernels: str = "auto"
    exact: bool = True


def list_providers(task: Task, size: tuple[int, int], *, tiny: bool) -> list[Provider]:
    """Return what is timed at one size; published chains come first."""
    providers = [Provider(name, call, exact=False) for name, call in task.published.items()]
    if task.compilable and (tiny or size in COMPILED):
        backend = "eager" if tiny else "inductor"
        compiled = torch.compile(task.compilable, dynamic=False, backend=backend)
        providers.append(
            Provider(f"torch.compile ({backend})", compiled, exact=task.compilable not in task.published.values())
        )
    return [*providers, Provider("torch", task.ours, "torch"), Provider("triton", task.ours, "triton")]


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
    shared = {"kernel": task.name, "rows": size[0], "vocabulary": size[1]}
    floor = task.least_bytes(inputs) / bandwidth * 1e6
    published: dict[str, float] = {}
    for provider in list_providers(task, size, tiny=tiny):
        for row in _measure(task, inputs, provider, budget, 5 if tiny else REPEATS):
            time = row.get("time_us_p50")
            first = published.setdefault(row["mode"], time) if time else None
            ratios = {"time_over_floor": time and time / floor, "time_over_published": time and first and time / first}
            results.add(**shared, provider=provider.name, **row, floor_us=floor, **ratios)


def _measure(task: Task, inputs: Inputs, provider: Provider, budget: Budget, repeats: int) -> Iterator[Row]:
    """One row per mode; a provider that cannot run says so instead."""
    modes = ("cold", "warm", "graph") if inputs[0].device.type == "cuda" else ("warm",)
    with use_kernels(provider.kernels):
        facts = _facts(task, inputs, provider) if budget.left else {"status": OUT_OF_TIME}
        for mode in modes:
            timed = {} if "status" in facts else _time(mode, functools.partial(provider.call, *inputs), inputs, repeats)
            yield {"mode": mode, **facts, **timed}


def _facts(task: Task, inputs: Inputs, provider: Provider) -> Row:
    """Return what ran and how far its result is from the formula, or a status where nothing is worth timing."""
    try:
        with record_paths() as ran:
            result = provider.call(*inputs)
        error = task.error(inputs, result)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return {"status": OUT_OF_MEMORY}
    except Exception as problem:  # noqa: BLE001 - a compiler may be missing; the row says so, the others still count
        return {"status": f"did not run: {_first_line(problem)}"}
    facts: Row = {"ran": ", ".join(dict.fromkeys(ran)) or None, "largest_error": error}
    return facts | ({"status": "failed: wrong result"} if provider.exact and not error <= TOLERANCE else {})


def _time(mode: str, call: Callable[[], Any], inputs: Inputs, repeats: int) -> Row:
    device = inputs[0].device
    try:
        durations(call, device, WARM_UP)
        if mode == "graph":
            return _time_graph(call, device, repeats)
        flush = torch.empty(FLUSHED, dtype=torch.uint8, device=device) if mode == "cold" else None
        times = durations(call, device, repeats, None if flush is None else flush.zero_)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return {"status": OUT_OF_MEMORY}
    return spread("time_us", [milliseconds * 1e3 for milliseconds in times])


def _time_graph(call: Callable[[], Any], device: torch.device, repeats: int) -> Row:
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            for _ in range(GRAPH_CALLS):
                call()
    except torch.OutOfMemoryError:
        raise
    except Exception as problem:  # noqa: BLE001 - not everything can be captured; the row says so
        with contextlib.suppress(Exception):
            torch.cuda.synchronize()
        return {"status": f"not captured: {_first_line(problem)}"}
    durations(graph.replay, device, WARM_UP)
    return spread(
        "time_us", [milliseconds * 1e3 / GRAPH_CALLS for milliseconds in durations(graph.replay, device, repeats)]
    )


def _first_line(problem: Exception) -> str:
    return f"{type(problem).__name__}: {(str(problem).splitlines() or [''])[0][:120]}"
