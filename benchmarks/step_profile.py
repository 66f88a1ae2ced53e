"""Where the time of one guarded decode step goes: `python benchmarks/step_profile.py --out benchmarks/results`.

Python's own profiler runs from the first generated token on, on the 0.4 B shape of the overhead benchmark. It slows
Python down and leaves tensors alone, so small parts look larger than they are: a ranking, not a measurement of overhead.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lvlm_guard_contrastive import M3ID, VCD
from lvlm_guard_layers import DeCo, DoLa
from lvlm_guard_reweighting import PAI, VAF
from lvlm_guard_steering import VSV
from measuring import Results, Row, machine
from shapes import LLAVA_SMALL, LLAVA_TINY, Shape
from transformers import StoppingCriteria, StoppingCriteriaList

from lvlm_guard import Guard

STACKS: dict[str, list[Any]] = {
    "noise branch (vcd)": [VCD()],
    "image-free branch (m3id)": [M3ID()],
    "readouts (dola)": [DoLa()],
    "readouts (deco)": [DeCo()],
    "attention edits (vaf)": [VAF()],
    "attention edits (pai)": [PAI()],
    "hidden edits (vsv)": [VSV()],
}
PARTS: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "model": (
        ("lvlm_guard/forward/executors/sequential.py", ("run",)),
        ("lvlm_guard/forward/executors/batched.py", ("run",)),
    ),
    "inside layers": (
        ("lvlm_guard/forward/interventions/hidden.py", ("hook",)),
        ("lvlm_guard/forward/interventions/readouts.py", ("hook", "_join_head", "_split_head")),
    ),
    "attention function": (("lvlm_guard/forward/interventions/attention.py", ("guarded_attention",)),),
    "terms": (("lvlm_guard/host/plugins.py", ("call",)),),
    "combine": (("lvlm_guard/arithmetic/fusion.py", ("combine",)),),
    "notes": (("lvlm_guard/arithmetic/effects.py", ("record_forward",)),),
    "guard": (("lvlm_guard/forward/decode.py", ("step",)),),
}
"""Files and functions whose cumulative time makes up a part; `guard` holds all the others."""
NOTES = (
    "Milliseconds per decode step as the profiler counts them, the share of the whole step behind them.",
    "model: the forward of main and of branches in its batch, with masks, positions and the work inside the layers.",
    (
        "inside layers, attention function: hooks, and the registered attention function where one is; parts of model. "
        "The attention function includes the attention it delegates to."
    ),
    "terms, combine, notes: what strategies compute on logits, the one sum, and the record of what changed.",
    "other: bookkeeping of the guard. generate: everything outside the guarded forward.",
)


class FromFirstToken(StoppingCriteria):  # type: ignore[misc] # transformers is untyped here
    """Profiles everything between the first and the last token, and never stops."""

    def __init__(self, profiler: cProfile.Profile, last: int) -> None:
        self._profiler, self._last, self._tokens = profiler, last, 0

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:  # noqa: ARG002 - transformers passes scores
        """Switch on after the first token and off after the last."""
        self._tokens += 1
        if self._tokens == self._last:
            self._profiler.disable()
        if self._tokens == 1:
            self._profiler.enable()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def profiled(guard: Guard, inputs: Any, new_tokens: int) -> dict[Any, Any]:
    """Statistics of `new_tokens - 1` decode steps by function."""
    lengths = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False}
    guard.generate(**inputs, **{**lengths, "max_new_tokens": 3, "min_new_tokens": 3})
    profiler = cProfile.Profile()
    criteria = StoppingCriteriaList([FromFirstToken(profiler, new_tokens)])
    guard.generate(**inputs, **lengths, stopping_criteria=criteria)
    statistics: dict[Any, Any] = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    return statistics


def cumulative(stats: dict[Any, Any], file: str, functions: Sequence[str]) -> float:
    """Seconds spent in functions of one file, what they call included."""
    return sum(
        float(values[3]) for (path, _, name), values in stats.items() if path.endswith(f"/{file}") and name in functions
    )


def row(name: str, stats: dict[Any, Any], steps: int) -> Row:
    """One stack: milliseconds per step and shares."""
    seconds = {part: sum(cumulative(stats, *place) for place in places) for part, places in PARTS.items()}
    total = sum(values[2] for values in stats.values())
    seconds["other"] = seconds["guard"] - sum(seconds[part] for part in ("model", "terms", "combine", "notes"))
    seconds["generate"] = total - seconds.pop("guard")
    shares = {part: f"{value / steps * 1e3:.2f} ({value / total:.1%})" for part, value in seconds.items()}
    return {"stack": name, "step_ms": total / steps * 1e3, **shares}


def measure(shape: Shape, new_tokens: int) -> list[Row]:
    """A row for every stack."""
    model = shape.build(torch.device("cpu"), torch.bfloat16)
    inputs = shape.inputs(model, 1)
    return [
        row(name, profiled(Guard(model, stack=stack), inputs, new_tokens), new_tokens - 1)
        for name, stack in STACKS.items()
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Profile, write `step_profile.json` and `step_profile.md`, print the page."""
    parser = argparse.ArgumentParser(description="Where the time of a guarded decode step goes, on the CPU.")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for the results")
    parser.add_argument("--new-tokens", type=int, default=41, help="tokens per call, at least 2 (default 41)")
    parser.add_argument("--tiny", action="store_true", help="a toy model, in seconds, to see that the script runs")
    options = parser.parse_args(arguments)
    shape = LLAVA_TINY if options.tiny else LLAVA_SMALL
    about = {**machine(torch.device("cpu")), "model": shape.name, "dtype": "bfloat16", "batch": 1}
    shown = (
        "stack",
        "step_ms",
        "model",
        "inside layers",
        "attention function",
        "terms",
        "combine",
        "notes",
        "other",
        "generate",
    )
    results = Results(
        options.out, "step_profile", "Where a guarded decode step goes, on the CPU", about, shown, csv=False
    )
    results.rows.extend(measure(shape, options.new_tokens))
    results.notes.extend(NOTES)
    results.write()
    print(results.markdown())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
