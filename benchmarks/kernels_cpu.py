"""The logit path on the CPU: `python benchmarks/kernels_cpu.py --out benchmarks/results`.

What the library runs without a GPU against what is published: the combine step against VCD's chain, layer divergence
against DoLa's, inner layers read in one stacked head product against one product each. fp32; both take turns in
interleaved rounds of one process, and every ratio is taken within one round.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from chains import COMBINE, DIVERGENCE, LAYERS, Inputs, Task
from kernels_part import use_kernels
from measuring import Results, Row, machine, spread
from torch.nn.functional import linear

ROWS, VOCABULARIES = (1, 8), (32000, 151936)
WIDTHS, DEPTHS = (1024, 4096), (8, 16)
LEAST_ROUNDS, MOST_ROUNDS = 5, 200
TOLERANCE = 1e-3
GOAL = 1.0
SHOWN = (
    "what",
    "rows",
    "vocabulary",
    "hidden",
    "layers",
    "rounds",
    "ours_ms",
    "published_ms",
    "ratio",
    "verdict",
    "status",
)
NOTES = (
    "Milliseconds of one call, medians over rounds with the 20th and 80th percentile; the ratio is ours to published.",
    (
        "combine: VCD's released chain up to the masked logits against `combine`, which demotes instead of masking. "
        f"layer_divergence: DoLa's released chain over {LAYERS} layers against `layer_divergence`. readouts: one head "
        "product for each layer against one over the stacked layers, which is what a readout of the library runs."
    ),
    f"The goal is a median ratio of at most {GOAL:g} in every row. Before timing, results are held to each other.",
)


@dataclass(frozen=True)
class Pair:
    """Two ways to the same result.

    Args:
        what: What is computed.
        facts: Its sizes.
        ours: What the library runs.
        published: What it replaces.
        difference: How far the results are from where they should be.
    """

    what: str
    facts: Row
    ours: Callable[[], object]
    published: Callable[[], object]
    difference: Callable[[], float]


def pair_task(task: Task, rows: int, vocabulary: int) -> Pair:
    """Return a kernel against its published chain; ours is checked against the formula in float64."""
    inputs = task.draw(rows, vocabulary, torch.device("cpu"), torch.float32)
    ours, chain = (functools.partial(call, *inputs) for call in (task.ours, next(iter(task.published.values()))))
    facts = {"rows": rows, "vocabulary": vocabulary, "hidden": None, "layers": _count_layers(inputs)}
    return Pair(task.name, facts, ours, chain, lambda: task.error(inputs, ours()))


def _count_layers(inputs: Inputs) -> int | None:
    return inputs[1].shape[0] if inputs[1].dim() > inputs[0].dim() else None


def pair_readouts(rows: int, vocabulary: int, hidden: int, layers: int) -> Pair:
    """Return inner layers through the head, stacked against one by one; each is checked against the other."""
    torch.manual_seed(rows)
    head = (torch.randn(1000, hidden) / hidden**0.5).repeat(vocabulary // 1000 + 1, 1)[:vocabulary]
    states = [torch.randn(rows, 1, hidden) for _ in range(layers)]
    facts = {"rows": rows, "vocabulary": vocabulary, "hidden": hidden, "layers": layers}

    def stacked() -> torch.Tensor:
        return linear(torch.stack(states), head)

    def separate() -> torch.Tensor:
        return torch.stack([linear(state, head) for state in states])

    return Pair("readouts", facts, stacked, separate, lambda: float((stacked() - separate()).abs().max()))


def list_pairs(*, tiny: bool) -> Iterator[Pair]:
    """Yield everything that is compared; each pair is made when its turn comes, since heads are large."""
    vocabularies, widths = ((512, 1000), (16, 32)) if tiny else (VOCABULARIES, WIDTHS)
    for task, rows, vocabulary in itertools.product((COMBINE, DIVERGENCE), ROWS, vocabularies):
        yield pair_task(task, rows, vocabulary)
    for hidden, vocabulary, layers in itertools.product(widths, vocabularies, DEPTHS):
        yield pair_readouts(1, vocabulary, hidden, layers)


def measure(pair: Pair, seconds: float) -> Row:
    """Return times and ratios of interleaved rounds, for `seconds` or the fewest rounds."""
    difference = pair.difference()
    if not difference <= TOLERANCE:
        return {"what": pair.what, **pair.facts, "rounds": 0, "status": f"failed: results differ by {difference:.3g}"}
    for call in (pair.ours, pair.published):
        call()
    end, rounds = time.perf_counter() + seconds, list[tuple[float, float]]()
    while len(rounds) < LEAST_ROUNDS or (len(rounds) < MOST_ROUNDS and time.perf_counter() < end):
        if len(rounds) % 2:
            second = _time_call(pair.published)
            rounds.append((_time_call(pair.ours), second))
        else:
            rounds.append((_time_call(pair.ours), _time_call(pair.published)))
    ratios = [ours / published for ours, published in rounds]
    row = {"what": pair.what, **pair.facts, "rounds": len(rounds), "verdict": _verdict(ratios)}
    row |= spread("ours_ms", [ours for ours, _ in rounds])
    row |= spread("published_ms", [published for _, published in rounds])
    return row | spread("ratio", ratios)


def _time_call(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


def _verdict(ratios: Sequence[float]) -> str:
    return "met" if statistics.median(ratios) <= GOAL else "missed"


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="The logit path on the CPU.")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for the results")
    parser.add_argument("--seconds", type=float, default=1.5, help="time of one row (default 1.5)")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, in seconds, to see that the script runs")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write `kernels_cpu.json` and `kernels_cpu.md`, print the page; 1 if a result was wrong."""
    arguments = parse_arguments(argv)
    about = {**machine(torch.device("cpu")), "dtype": "float32"}
    results = Results(
        arguments.out, "kernels_cpu", "The logit path on the CPU", about, SHOWN, notes=[*NOTES], csv=False
    )
    with use_kernels("torch"), torch.no_grad():
        for pair in list_pairs(tiny=arguments.tiny):
            results.add(**measure(pair, 0.01 if arguments.tiny else arguments.seconds))
    results.write()
    print(results.markdown())
    return int(any(row["status"].startswith("failed") for row in results.rows))


if __name__ == "__main__":
    raise SystemExit(main())
