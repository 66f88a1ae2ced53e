"""Plain against guarded generation on held-out scenes of the testbed, with intervals and cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from lvlm_guard.testbed.evaluate import Answer, Evaluation, evaluate
from lvlm_guard.testbed.measures import DEMO_MEASURES, Comparison, Measure, compare
from lvlm_guard.testbed.world.scenes import scenes as drawn

DEMO_SPLITS = ("counterfactual", "iid")
SCENES = 60
"""Of each split: a third of the counterfactual ones for each habit."""

STACK = Path(__file__).parent / "demo_stack.toml"
"""The stack where nobody names one. `benchmarks/choose_stack.py` chose it on calibration scenes."""

_STYLES = {"better": "green", "worse": "red", "unclear": "dim"}


@dataclass(frozen=True)
class GenerationCost:
    """Measured in this run. Forwards and rows per decode forward are counted against plain generation, which has 1."""

    ms_per_token: float
    tokens: int
    prefill: float = 1.0
    decode: float = 1.0
    rows: float = 1.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values only."""
        forwards = {"prefill": self.prefill, "decode": self.decode}
        return {
            "ms_per_token": self.ms_per_token,
            "tokens": self.tokens,
            "forwards_per_token": forwards,
            "rows_per_forward": self.rows,
        }


@dataclass(frozen=True)
class DemoResult:
    """What `run` measured. `answers` holds every raw answer, plain and guarded, so that nothing is only a score."""

    model: str
    stack: str
    scenes: int
    splits: dict[str, dict[str, Comparison]]
    plain_cost: GenerationCost
    guarded_cost: GenerationCost
    answers: dict[str, tuple[Answer, ...]] = field(default_factory=dict, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain values, raw answers left out."""
        return {
            "model": self.model,
            "stack": self.stack,
            "scenes": self.scenes,
            "splits": {
                split: {level: _plain_values(compared) for level, compared in levels.items()}
                for split, levels in self.splits.items()
            },
            "cost": {"plain": self.plain_cost.to_dict(), "guarded": self.guarded_cost.to_dict()},
        }


def _plain_values(compared: Comparison) -> dict[str, Any]:
    values = asdict(compared)
    n = values.pop("n")
    return {name: {**measured, "n": n} for name, measured in values.items()}


def run(
    model: Any,
    processor: Any,
    guard: Any,
    scenes: int = SCENES,
    *,
    splits: Sequence[str] = DEMO_SPLITS,
    seed: int = 0,
    batch: int = 32,
    progress: bool = True,
) -> DemoResult:
    """Asks about and captions `scenes` scenes of each split twice, plain and guarded, greedily.

    `guard` needs `generate`, `report` and `stack` as `lvlm_guard.Guard` has them.
    """
    chosen = {split: drawn(split, scenes, seed) for split in splits}
    asked = [scene for part in chosen.values() for scene in part]
    forwards = _Forwards(guard)
    ask = {"batch": batch, "device": model.device, "progress": progress}
    with _one_thread():
        # The first calls pay for warming up, which would be charged to whichever goes first.
        for generate in (model.generate, guard.generate):
            evaluate(generate, processor, asked[:2], batch=2, device=model.device, progress=False)
        plain = evaluate(model.generate, processor, asked, **ask)
        guarded = evaluate(guard.generate, processor, asked, after_batch=forwards.add, **ask)
    return DemoResult(
        model=type(model).__name__,
        stack="+".join(guard.stack.names) or "no strategy",
        scenes=scenes,
        splits={split: compare(_of(plain, split), _of(guarded, split), seed) for split in splits},
        plain_cost=GenerationCost(plain.cost.ms_per_token, plain.cost.tokens),
        guarded_cost=GenerationCost(guarded.cost.ms_per_token, guarded.cost.tokens, *forwards.mean()),
        answers={"plain": plain.answers, "guarded": guarded.answers},
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread while it lasts: in a model this small, threads wait for each other longer than they work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Forwards:
    """Averages what the guard reports after each call, by the tokens the call generated."""

    def __init__(self, guard: Any) -> None:
        self.guard = guard
        self.seen: list[tuple[float, float, float, int]] = []

    def add(self, tokens: int) -> None:
        report = self.guard.report
        self.seen.append((report.forwards.prefill, report.forwards.decode, report.rows_per_forward, tokens))

    def mean(self) -> tuple[float, float, float]:
        tokens = sum(weight for *_, weight in self.seen)
        prefill, decode, rows = (sum(row[at] * row[3] for row in self.seen) / max(tokens, 1) for at in range(3))
        return prefill, decode, rows


def _of(evaluation: Evaluation, split: str) -> list[Answer]:
    return [answer for answer in evaluation.answers if answer.split == split]


def render(result: DemoResult, console: Console) -> None:
    """Prints one table per split, its rows by level, and one of the cost."""
    for split, levels in result.splits.items():
        console.print(_figures(f"{split}: {result.scenes} scenes, {result.stack} against plain", levels))
    console.print(_cost(result))
    console.print("Figures of a small model on drawn scenes: they say nothing about other models.")


def _figures(title: str, levels: Mapping[str, Comparison]) -> Table:
    table = Table("measure", "plain", "guarded", "difference [95 %]", "n", title=title)
    measures = [DEMO_MEASURES[name] for name in levels]
    follow = [*(measure.level for measure in measures[1:]), None]
    for measure, compared, after in zip(measures, levels.values(), follow, strict=True):
        table.add_row(*_row(measure, compared), end_section=measure.level != after)
    return table


def _cost(result: DemoResult) -> Table:
    columns = ("", "ms per token", "prefill forwards", "decode forwards", "rows per forward")
    table = Table(*columns, title="cost, measured in this run")
    for name, cost in (("plain", result.plain_cost), ("guarded", result.guarded_cost)):
        table.add_row(name, f"{cost.ms_per_token:.2f}", f"{cost.prefill:.2f}", f"{cost.decode:.2f}", f"{cost.rows:.2f}")
    return table


def _row(measure: Measure, compared: Comparison) -> tuple[str, ...]:
    change, style = compared.difference, _STYLES[measure.verdict(compared.difference)]
    aim = "higher is better" if measure.higher_is_better else "lower is better"
    return (
        f"{measure.title} ({aim})",
        f"{compared.plain.value:.3f}",
        f"{compared.guarded.value:.3f}",
        f"[{style}]{change.value:+.3f} \\[{change.low:+.3f}, {change.high:+.3f}][/{style}]",
        str(compared.n),
    )
