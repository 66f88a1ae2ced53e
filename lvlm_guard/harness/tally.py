"""What a whole run cost, added up call by call from the guard's reports."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch

from lvlm_guard.call.report import Report

MEGABYTE = 1e6


@dataclass
class Tally:
    """Sums over guarded calls.

    Args:
        calls: Calls of generate.
        requests: Prompts answered.
        tokens: Generated tokens, end tokens included, padding not.
        seconds: Wall-clock time inside generate.
        prefill: Forwards of the decoder over prompts.
        decode: Forwards of the decoder after them, one for every forward of plain generate where nothing is added.
        steps: Forwards after the prompt that plain generate would have run.
        step_rows: Sum over these forwards of the rows of a decode forward over plain's.
        changed: Positions where a strategy alone prefers another token, by strategy.
        positions: Positions looked at, by strategy.
    """

    calls: int = 0
    requests: int = 0
    tokens: int = 0
    seconds: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    steps: int = 0
    step_rows: float = 0.0
    changed: Counter[str] = field(default_factory=Counter)
    positions: Counter[str] = field(default_factory=Counter)

    def add(self, report: Report, *, requests: int, tokens: int, seconds: float) -> None:
        """Count one call."""
        steps = max(report.tokens - 1, 0)
        self.calls += 1
        self.requests += requests
        self.tokens += tokens
        self.seconds += seconds
        self.prefill += report.forwards.prefill
        self.decode += report.forwards.decode * steps
        self.steps += steps
        self.step_rows += report.rows_per_forward * steps
        for one in report.strategies:
            self.changed[one.name] += one.tokens_changed
            self.positions[one.name] += one.positions

    @property
    def speed(self) -> float:
        """Generated tokens per second; 0 before the first call."""
        return self.tokens / self.seconds if self.seconds else 0.0

    def figures(self, device: torch.device) -> dict[str, float]:
        """Figures of the run: means per call or per forward of plain, 1 being plain; what nothing was seen of is left out.

        `forwards_prefill` and `forwards_decode` count forwards of the decoder per forward of plain generate,
        `forwards_per_token` both together per position generated, `rows_per_forward` the rows of a decode forward over
        plain's (branches decoded as one batch show here). `changed_<strategy>` is the share of positions where this
        strategy alone prefers another token. The peak of memory is as `peak_memory` says.
        """
        if not self.calls:
            return {}
        found = {
            "forwards_prefill": self.prefill / self.calls,
            "forwards_per_token": (self.prefill + self.decode) / (self.calls + self.steps),
        }
        if self.steps:
            found["forwards_decode"] = self.decode / self.steps
            found["rows_per_forward"] = self.step_rows / self.steps
        changed = {f"changed_{name}": self.changed[name] / count for name, count in self.positions.items() if count}
        return {**found, **changed, **peak_memory(device)}


def peak_memory(device: torch.device) -> dict[str, float]:
    """Peak of this process in megabytes, weights included, under a name that says what was counted.

    `peak_cuda_mb` is memory allocated on a GPU, `peak_resident_mb` the resident set of the whole process, libraries and
    harness included. Empty where neither can be asked for.
    """
    if device.type == "cuda":
        return {"peak_cuda_mb": torch.cuda.max_memory_allocated(device) / MEGABYTE}
    if device.type != "cpu" or sys.platform == "win32":
        return {}
    import resource  # noqa: PLC0415 - not there on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return {"peak_resident_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MEGABYTE}


def described(tally: Tally, device: torch.device) -> dict[str, Any]:
    """Sums and figures as plain values."""
    sums = {"calls": tally.calls, "requests": tally.requests, "tokens": tally.tokens, "seconds": tally.seconds}
    return {**sums, "tokens_per_second": tally.speed, **tally.figures(device)}
