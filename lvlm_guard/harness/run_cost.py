"""The cost of a whole run, added up call by call from the guard's reports."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch

from lvlm_guard.call.report import Report

MEGABYTE = 1e6


@dataclass
class RunCost:
    """Sums over guarded calls.

    Args:
        calls: Calls of generate.
        requests: Prompts answered.
        tokens: Generated tokens, including end tokens but not padding.
        seconds: Wall-clock time inside generate.
        prefill: Forwards of the decoder over prompts.
        decode: Forwards of the decoder after the prompts. Without added branches this equals `steps`.
        steps: Forwards after the prompt that plain generate would have run.
        step_rows: Sum over `steps` of the rows of a decode forward, relative to plain generate.
        tokens_changed: Positions where a strategy alone prefers a different token, by strategy.
        calls_with_effect: Calls in which a strategy had any effect, by strategy.
        uncounted: Strategies that acted otherwise than by terms, whose changed tokens are not known.
        positions: Positions examined, by strategy.
    """

    calls: int = 0
    requests: int = 0
    tokens: int = 0
    seconds: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    steps: int = 0
    step_rows: float = 0.0
    tokens_changed: Counter[str] = field(default_factory=Counter)
    calls_with_effect: Counter[str] = field(default_factory=Counter)
    uncounted: set[str] = field(default_factory=set)
    positions: Counter[str] = field(default_factory=Counter)

    def add(self, report: Report, *, requests: int, tokens: int, seconds: float) -> None:
        """Add one call."""
        steps = max(report.tokens - 1, 0)
        self.calls += 1
        self.requests += requests
        self.tokens += tokens
        self.seconds += seconds
        self.prefill += report.forwards.prefill
        self.decode += report.forwards.decode * steps
        self.steps += steps
        self.step_rows += report.rows_per_forward * steps
        for strategy in report.strategies:
            self.tokens_changed[strategy.name] += strategy.tokens_changed or 0
            self.calls_with_effect[strategy.name] += strategy.had_effect
            if strategy.tokens_changed is None:
                self.uncounted.add(strategy.name)
            self.positions[strategy.name] += strategy.positions

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens per second; 0 before the first call."""
        return self.tokens / self.seconds if self.seconds else 0.0

    def compute_figures(self, device: torch.device) -> dict[str, float]:
        """Return figures of the run, each a mean per call or per forward of plain generate, which is 1.

        `forwards_prefill` and `forwards_decode` count forwards of the decoder per forward of plain generate,
        `forwards_per_token` both together per generated position, and `rows_per_forward` the rows of a decode forward
        relative to plain generate (branches decoded as one batch show up here). `changed_<strategy>` is the share of
        positions where this strategy alone prefers a different token, left out where it acts otherwise than by terms;
        `had_effect_<strategy>` is the share of calls in which it had any effect. `measure_peak_memory` describes the memory figures.
        Figures without any data are left out.
        """
        if not self.calls:
            return {}
        figures = {
            "forwards_prefill": self.prefill / self.calls,
            "forwards_per_token": (self.prefill + self.decode) / (self.calls + self.steps),
        }
        if self.steps:
            figures["forwards_decode"] = self.decode / self.steps
            figures["rows_per_forward"] = self.step_rows / self.steps
        shares = {
            f"changed_{name}": self.tokens_changed[name] / count
            for name, count in self.positions.items()
            if count and name not in self.uncounted
        }
        shares |= {f"had_effect_{name}": count / self.calls for name, count in self.calls_with_effect.items()}
        return {**figures, **shares, **measure_peak_memory(device)}

    def to_dict(self, device: torch.device) -> dict[str, Any]:
        """Return sums and figures as plain values."""
        sums = {"calls": self.calls, "requests": self.requests, "tokens": self.tokens, "seconds": self.seconds}
        return {**sums, "tokens_per_second": self.tokens_per_second, **self.compute_figures(device)}


def measure_peak_memory(device: torch.device) -> dict[str, float]:
    """Return the peak memory of this process in megabytes, including weights, under a name that says what was counted.

    `peak_cuda_mb` is memory allocated on a GPU. `peak_resident_mb` is the resident set of the whole process, including
    libraries and harness. The result is empty where neither is available.
    """
    if device.type == "cuda":
        return {"peak_cuda_mb": torch.cuda.max_memory_allocated(device) / MEGABYTE}
    if device.type != "cpu" or sys.platform == "win32":
        return {}
    import resource  # noqa: PLC0415 - missing on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return {"peak_resident_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MEGABYTE}
