"""What launching costs, and how much of a guarded step a device is busy: null kernel, host time of calls, launches of a step."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from kernels_part import _attempt, _capture
from lvlm_guard_kernels import Combination, combine, project, record_paths, select, shift, statistics, turn
from measuring import Budget, Results, Row, durations, machine, read_clocks, spread, versions
from shapes import LLAVA_7B, LLAVA_TINY, Shape
from torch.profiler import ProfilerActivity, profile
from transformers import StoppingCriteria
from variants import OUT_OF_TIME, PLAIN, Variant, guarded, inside

NEEDS_GPU = "needs a GPU"
REPEATS, CALLS, CAPTURED = 100, 20, 100
SHORT, LONG = 3, 11
DRY = PLAIN, "noise branch, batched", "hidden edits (vsv)"
"""What a dry run counts."""
SHOWN = (
    "what",
    "mode",
    "time_us",
    "launches_per_step",
    "busy_us_per_step",
    "wall_us_per_step",
    "busy_share",
    "ran",
    "status",
)
NOTES = (
    "null kernel: one program that stores one number; `warm` is called in a row, `captured` is one of many nodes of a CUDA graph.",
    "host: processor time of the calling thread per call, nothing waited for within a round.",
    (
        f"step: the profiler's kernels and their time in a call of {LONG} tokens, less those of {SHORT}, by the steps between; the wall "
        "time is of the same calls without a profiler. Without a GPU they are operations of torch and the processor's time in them."
    ),
)


def run(out: Path, device: torch.device, *, tiny: bool, seconds: float) -> Results:
    """Measure launches, host time and steps."""
    budget = Budget(seconds)
    every = {"gpu_name": machine(device)["gpu_name"], **versions(), "dtype": "bfloat16"}
    results = Results(out, "launches", "Launches and host time", machine(device), SHOWN, every, notes=[*NOTES])
    for mode in ("warm", "captured"):
        results.add(what="null kernel", mode=mode, **_time_null_kernel(mode, device, 5 if tiny else REPEATS))
    for name, call in list_calls(device, 512 if tiny else 151936).items():
        results.add(what=name, mode="host", **_time_host(call, device, 5 if tiny else REPEATS, budget))
    results.write()
    _measure_steps(results, LLAVA_TINY if tiny else LLAVA_7B, device, budget, DRY if tiny else None)
    return results


def _time_null_kernel(mode: str, device: torch.device, repeats: int) -> Row:
    """Return microseconds of a launch of a kernel that does next to nothing."""
    if device.type != "cuda":
        return {"status": NEEDS_GPU}

    def measure() -> Row:
        from lvlm_guard_kernels.trial import fused  # noqa: PLC0415 - Triton is loaded where it runs

        out = torch.zeros(1, dtype=torch.int32, device=device)
        launch: Any = fused.write_answer[(1,)]
        launch(out)
        calls = CAPTURED if mode == "captured" else CALLS
        lap = (
            _capture(lambda: launch(out), calls) if mode == "captured" else lambda: [launch(out) for _ in range(calls)]
        )
        durations(lap, device, 3)
        return spread("time_us", [time * 1e3 / calls for time in durations(lap, device, repeats)])

    return _as_row(_attempt(measure))


def list_calls(device: torch.device, vocabulary: int) -> dict[str, Callable[[], object]]:
    """Return what a guarded decode step of one row calls, by name."""
    main, branch = torch.randn(2, 1, 1, vocabulary, device=device).bfloat16()
    weight = torch.ones(1, 1, device=device)
    hidden, direction = torch.randn(1, 1, 4096, device=device).bfloat16(), torch.randn(1, 4096, device=device)
    return {
        "combine": lambda: combine(Combination(main, [branch], [-1.0], 2.0, 0.1)),
        "combine, weights on the device": lambda: combine(Combination(main, [branch], [weight], weight, 0.1)),
        "statistics": lambda: statistics(main),
        "select, top-k and top-p": lambda: select(Combination(main), temperature=0.8, top_k=50, top_p=0.9, seed=1),
        "turn": lambda: turn(hidden, direction, 0.2, opposed=True),
        "project": lambda: project(hidden, direction, 0.2),
        "shift": lambda: shift(hidden, direction, 0.2),
    }


def _time_host(call: Callable[[], object], device: torch.device, repeats: int, budget: Budget) -> Row:
    """Return microseconds of processor time of a call, until it returns."""
    if not budget.left:
        return {"status": OUT_OF_TIME}

    def measure() -> Row:
        with record_paths() as ran, torch.no_grad():
            durations(call, device, 3)
            times = [_time_thread(call, device) for _ in range(repeats)]
        return {"ran": ", ".join(dict.fromkeys(ran)), **spread("time_us", times)}

    return _as_row(_attempt(measure))


def _time_thread(call: Callable[[], object], device: torch.device) -> float:
    start = time.thread_time()
    for _ in range(CALLS):
        call()
    spent = (time.thread_time() - start) / CALLS * 1e6
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return spent


def _as_row(result: Any) -> Row:
    return result if isinstance(result, dict) else {"status": result}


class GoOn(StoppingCriteria):  # type: ignore[misc] # transformers is untyped here
    """Never stops."""

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:  # noqa: ARG002 - transformers passes scores
        """Go on."""
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def _measure_steps(
    results: Results, shape: Shape, device: torch.device, budget: Budget, names: Collection[str] | None
) -> None:
    """Add a row for plain generate and for every mechanism, or for those of some names."""
    model = _attempt(lambda: shape.build(device, torch.bfloat16))
    if isinstance(model, str):
        results.add(what=shape.name, mode="step", status=model)
        return
    inputs = shape.inputs(model, 1)
    for variant in [*guarded(model, inputs), *inside(model, inputs)]:
        if names is not None and variant.name not in names:
            continue
        row = {"status": OUT_OF_TIME}
        if budget.left:
            row = _as_row(_attempt(functools.partial(measure_step, variant, device)))
        results.add(what=variant.name, mode="step", clocks=read_clocks(device), **row)
        results.write()


def measure_step(variant: Variant, device: torch.device) -> Row:
    """Return launches, busy time and wall time of one decode step."""
    variant.run(SHORT, GoOn())
    counts, busy = zip(*(_profile(variant, tokens, device) for tokens in (SHORT, LONG)), strict=True)
    short, long = (
        min(durations(functools.partial(variant.run, tokens, GoOn()), device, 3)) for tokens in (SHORT, LONG)
    )
    steps = LONG - SHORT
    wall = max(long - short, 0.0) * 1e3 / steps
    spent = (busy[1] - busy[0]) / steps
    return {
        "launches_per_step": (counts[1] - counts[0]) / steps,
        "busy_us_per_step": spent,
        "wall_us_per_step": wall,
        "busy_share": spent / wall if wall else None,
    }


def _profile(variant: Variant, tokens: int, device: torch.device) -> tuple[int, float]:
    """Return how many kernels a call runs and their time in microseconds; without a GPU, operations of torch."""
    is_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_gpu else [])]
    with profile(activities=activities) as profiler:
        variant.run(tokens, GoOn())
        if is_gpu:
            torch.cuda.synchronize(device)
    if is_gpu:
        kernels = [event for event in profiler.events() if event.device_type.name == "CUDA"]
        return len(kernels), float(sum(event.time_range.elapsed_us() for event in kernels))
    leaves = [event for event in profiler.events() if event.name.startswith("aten::") and not event.cpu_children]
    return len(leaves), float(sum(event.self_cpu_time_total for event in leaves))
