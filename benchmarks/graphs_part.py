"""Decoding under a static cache, compiled and on a GPU captured in CUDA graphs: plain generate against guards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from kernels_part import _attempt
from measuring import Budget, Results, machine, read_clocks, versions
from shapes import LLAVA_7B, LLAVA_TINY
from static_caches import variants
from variants import PLAIN, Race

SHOWN = "model", "variant", "rounds", "executor", "step_ms", "step_ratio", "prefill_ratio", "status"
NOTES = (
    "Times are medians over interleaved rounds with the 20th and 80th percentile, of single steps after the first token; ratios are to plain, compiled, in the same round. Compilation is not in them.",
    "On a GPU `torch.compile` runs with mode reduce-overhead, which captures a step as CUDA graphs; in a dry run nothing is compiled to machine code.",
    "`plain, compiled, twice the rows` is the floor of one branch. Hidden edits work inside the layers, so they run uncompiled and warn.",
)
ROUNDS, NEW_TOKENS = 7, 33


def run(out: Path, device: torch.device, *, tiny: bool, seconds: float) -> Results:
    """Time plain generate and guards under static caches."""
    budget = Budget(seconds)
    shape = LLAVA_TINY if tiny else LLAVA_7B
    every = {"gpu_name": machine(device)["gpu_name"], **versions(), "dtype": "bfloat16"}
    about = {**machine(device), "dtype": "bfloat16", "clocks_before": read_clocks(device)}
    results = Results(out, "graphs", "Static caches, compiled and captured", about, SHOWN, every, notes=[*NOTES])
    model: Any = _attempt(lambda: shape.build(device, torch.bfloat16))
    if isinstance(model, str):
        results.add(model=shape.name, variant=PLAIN, rounds=0, status=model)
        return results
    is_gpu = device.type == "cuda"
    backend, mode = ("inductor", "reduce-overhead") if is_gpu else ("eager", None)
    race = Race(variants(model, shape.inputs(model, 1), backend, mode), 4 if tiny else NEW_TOKENS, device)
    race.warm_up(budget)
    for number in range(1 if tiny else ROUNDS):
        race.run(number, budget)
    for variant in race.variants:
        results.add(model=shape.name, **race.row(variant))
    results.about["clocks_after"] = read_clocks(device)
    return results
