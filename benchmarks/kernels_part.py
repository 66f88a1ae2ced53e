"""The combine step: the library's against the published eager chain and a compiled reference, by CUDA events."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lvlm_guard_kernels
import torch
from lvlm_guard_kernels import reference
from measuring import Budget, Results, Row, copy_bandwidth, durations, machine, spread, versions
from torch import Tensor
from variants import OUT_OF_TIME

ROWS = (1, 8, 64, 512)
VOCABULARIES = (32000, 151936)
ALPHA, BETA = 1.0, 0.1
TOLERANCE = 1e-3
REPEATS, GRAPH_CALLS = 100, 20
COPIED, FLUSHED = 2**30, 2**28
BYTES_PER_ELEMENT = 2 + 2 + 4
SHOWN = ("rows", "vocabulary", "provider", "mode", "time_us", "floor_us", "time_over_floor", "largest_error", "status")
NOTES = (
    (
        "(1 + alpha) main - alpha branch on tokens within ln beta of main's best; bf16 in, dense fp32 out (the published "
        "chain of VCD stays in bf16 throughout, which its largest error shows)."
    ),
    (
        "Modes: `flushed` overwrites the L2 cache before every call; `warm` calls again and again, so small sizes show what "
        "launching costs; `graph` replays a CUDA graph of 20 calls and divides."
    ),
    (
        "The floor is arithmetic on a measurement: 8 bytes per element (two bf16 reads, one fp32 write) over the copy "
        "bandwidth measured here; caches can beat it where nothing is flushed."
    ),
    (
        f"largest error: against the formula in float64, over surviving tokens; above {TOLERANCE:g} only the published "
        "chain is timed."
    ),
)
Combine = Callable[[Tensor, Tensor], Tensor]


def published_chain(main: Tensor, branch: Tensor) -> Tensor:
    """VCD's released chain up to the masked logits (`vcd_utils/vcd_sample.py`), one eager operation after another."""
    cutoff = torch.log(torch.tensor(BETA)) + main.max(dim=-1, keepdim=True).values
    diffs = (1 + ALPHA) * main - ALPHA * branch
    return diffs.masked_fill(main < cutoff, -float("inf"))


def combined(function: Callable[..., Tensor], main: Tensor, branch: Tensor) -> Tensor:
    """The same step through a `combine` of the library."""
    return function(main, [branch], [-ALPHA], main_weight=1 + ALPHA, beta=BETA)


@dataclass(frozen=True)
class Case:
    """Random logits of one size, and what the step gives in float64."""

    main: Tensor
    branch: Tensor

    @classmethod
    def draw(cls, rows: int, vocabulary: int, device: torch.device) -> Case:
        """Draw logits whose survivors are few, as real ones are."""
        torch.manual_seed(rows)
        draws = torch.randn(2, rows, 1, vocabulary, device=device) * 3
        return cls(draws[0].bfloat16(), draws[1].bfloat16())

    def largest_error(self, result: Tensor) -> float:
        """Largest difference from the formula in float64, over tokens that survive; infinite if one is missing."""
        main, branch = self.main.double(), self.branch.double()
        survives = main >= main.amax(-1, keepdim=True) + torch.tensor(BETA, dtype=torch.float64).log()
        wanted = (1 + ALPHA) * main - ALPHA * branch
        error = torch.where(survives, result.double() - wanted, 0.0).abs().amax()
        return float(error.nan_to_num(torch.inf, torch.inf))


def providers(*, tiny: bool) -> dict[str, Combine]:
    """What is timed, by name; the package's own `combine` too where it is something else than the reference."""
    backend = "eager" if tiny else "inductor"
    compiled = torch.compile(reference.combine, dynamic=False, backend=backend)
    named: dict[str, Combine] = {
        "published chain (VCD)": published_chain,
        "reference": functools.partial(combined, reference.combine),
        f"reference, torch.compile ({backend})": functools.partial(combined, compiled),
    }
    if lvlm_guard_kernels.combine is not reference.combine:
        named["lvlm_guard_kernels.combine"] = functools.partial(combined, lvlm_guard_kernels.combine)
    return named


def run(out: Path, device: torch.device, *, tiny: bool, seconds: float) -> Results:
    """Time every provider at every size and in every mode."""
    budget = Budget(seconds)
    bandwidth = copy_bandwidth(device, COPIED // 64 if tiny else COPIED)
    every = {"gpu_name": machine(device)["gpu_name"], **versions(), "dtype": "bfloat16"}
    about = {**machine(device), "dtype": "bfloat16", "copy_bandwidth_gb_per_s": bandwidth / 1e9}
    results = Results(out, "kernels", "The combine step", about, SHOWN, every, notes=[*NOTES])
    sizes = itertools.product((1, 8), (512, 1000)) if tiny else itertools.product(ROWS, VOCABULARIES)
    for rows, vocabulary in sizes:
        case = Case.draw(rows, vocabulary, device)
        floor = {"floor_us": BYTES_PER_ELEMENT * case.main.numel() / bandwidth * 1e6}
        torch.compiler.reset()
        for name, provider in providers(tiny=tiny).items():
            for row in _measure(case, provider, budget, 5 if tiny else REPEATS):
                over = row["time_us_p50"] / floor["floor_us"] if row.get("time_us_p50") else None
                results.add(rows=rows, vocabulary=vocabulary, provider=name, **row, **floor, time_over_floor=over)
        results.write()
    return results


def _measure(case: Case, provider: Combine, budget: Budget, repeats: int) -> Iterator[Row]:
    """One row per mode; a provider that cannot run says so instead."""
    modes = ("flushed", "warm", "graph") if case.main.device.type == "cuda" else ("warm",)
    if not budget.left:
        yield from ({"mode": mode, "status": OUT_OF_TIME} for mode in modes)
        return
    try:
        error = case.largest_error(provider(case.main, case.branch))
    except Exception as problem:  # noqa: BLE001 - a compiler may be missing; the row says so, the others still count
        yield from ({"mode": mode, "status": f"did not run: {_first_line(problem)}"} for mode in modes)
        return
    if error > TOLERANCE and provider is not published_chain:
        yield from ({"mode": mode, "largest_error": error, "status": "failed: wrong result"} for mode in modes)
        return
    for mode in modes:
        yield {"mode": mode, "largest_error": error, **_time(mode, case, provider, repeats)}


def _time(mode: str, case: Case, provider: Combine, repeats: int) -> Row:
    call = functools.partial(provider, case.main, case.branch)
    device = case.main.device
    durations(call, device, 3)
    if mode == "graph":
        return _time_graph(call, device, repeats)
    flush = torch.empty(FLUSHED, dtype=torch.uint8, device=device) if mode == "flushed" else None
    times = durations(call, device, repeats, None if flush is None else flush.zero_)
    return spread("time_us", [one * 1e3 for one in times])


def _time_graph(call: Callable[[], Any], device: torch.device, repeats: int) -> Row:
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            for _ in range(GRAPH_CALLS):
                call()
    except Exception as problem:  # noqa: BLE001 - not everything can be captured; the row says so
        with contextlib.suppress(Exception):
            torch.cuda.synchronize()
        return {"status": f"not captured: {_first_line(problem)}"}
    durations(graph.replay, device, 3)
    return spread("time_us", [one * 1e3 / GRAPH_CALLS for one in durations(graph.replay, device, repeats)])


def _first_line(problem: Exception) -> str:
    return f"{type(problem).__name__}: {(str(problem).splitlines() or [''])[0][:120]}"
