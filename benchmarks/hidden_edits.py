"""What an edit of one layer's states costs on the CPU: `python benchmarks/hidden_edits.py --out benchmarks/results`.

The same arithmetic three times, each in a forward hook on a module that does nothing: written by hand, as steering is published; as
the kernel alone; and as the value that a strategy yields, with all that the library does to find the kernel and check what it gets.
All take turns within a round of one process, next to a hook that does nothing.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from lvlm_guard_kernels.hidden import eager
from measuring import Results, machine, spread
from torch import Tensor, nn
from torch.linalg import vector_norm

from lvlm_guard import HiddenEdit, Project, Shift, Turn
from lvlm_guard.arithmetic.hidden_edits import Kernels, apply_edit

WIDTHS, DTYPES = (32, 512, 4096), (torch.float32, torch.bfloat16)
ROUNDS, CALLS = 60, 200
STRENGTH, DIRECTIONS, TINY = 0.2, 4, 1e-12
SHOWN = "edit", "width", "dtype", "nothing_us", "by_hand_us", "kernel_us", "value_us", "value_over_hand"
NOTES = (
    "Microseconds of processor time of this thread per layer and step of one position, on one thread; medians over interleaved rounds with the 20th and 80th percentile.",
    (
        "nothing: a hook that returns None. by hand: a strategy's formula, one operation of torch after another. kernel: the torch "
        "path of the kernel without any check. value: `Turn`, `Project` or `Shift` as the guard applies it. The ratio is taken within a round."
    ),
)
Find = Callable[[Tensor, Any], Tensor]


@dataclass(frozen=True)
class Edit:
    """One edit in its three forms.

    Args:
        name: Of the row.
        by_hand: Its formula on states and vectors.
        kernel: The kernel on states and vectors.
        value: Makes the value of a function that finds the vectors.
    """

    name: str
    by_hand: Callable[[Tensor, Tensor], Tensor]
    kernel: Callable[[Tensor, Tensor], Tensor]
    value: Callable[[Find], Any]


def turn_by_hand(hidden: Tensor, unit: Tensor) -> Tensor:
    """Turn, as it is published."""
    hidden = hidden.float()
    size = vector_norm(hidden, dim=-1, keepdim=True)
    turned = torch.add(hidden, size * unit, alpha=STRENGTH)
    scaled: Tensor = turned * (size / (vector_norm(turned, dim=-1, keepdim=True) + TINY))
    return scaled


def turn_opposed_by_hand(hidden: Tensor, unit: Tensor) -> Tensor:
    """Turn further what points away, as it is published."""
    hidden = hidden.float()
    size = vector_norm(hidden, dim=-1, keepdim=True)
    pull = torch.maximum(size, size - (hidden * unit).sum(-1, keepdim=True))
    turned = torch.add(hidden, pull * unit, alpha=STRENGTH)
    scaled: Tensor = turned * (size / (vector_norm(turned, dim=-1, keepdim=True) + TINY))
    return scaled


def project_by_hand(hidden: Tensor, directions: Tensor) -> Tensor:
    """Project, as it is published."""
    hidden = hidden.float()
    return torch.sub(hidden, hidden @ directions.T @ directions, alpha=STRENGTH)


def shift_by_hand(hidden: Tensor, vector: Tensor) -> Tensor:
    """Shift, as it is published."""
    return torch.add(hidden.float(), vector, alpha=STRENGTH)


EDITS = (
    Edit(
        "turn", turn_by_hand, lambda x, u: eager.turn(x, u, STRENGTH, opposed=False), lambda find: Turn(find, STRENGTH)
    ),
    Edit(
        "turn, opposed",
        turn_opposed_by_hand,
        lambda x, u: eager.turn(x, u, STRENGTH, opposed=True),
        lambda find: Turn(find, STRENGTH, opposed=True),
    ),
    Edit("project", project_by_hand, lambda x, v: eager.project(x, v, STRENGTH), lambda find: Project(find, STRENGTH)),
    Edit("shift", shift_by_hand, lambda x, v: eager.shift(x, v, STRENGTH), lambda find: Shift(find, STRENGTH)),
)


def list_layers(edit: Edit, width: int, dtype: torch.dtype) -> tuple[dict[str, nn.Module], Tensor]:
    """Return a module for each form of an edit, and states of one position."""
    generator = torch.Generator().manual_seed(width)
    shape = (DIRECTIONS, width) if edit.name == "project" else (1, 1, width)
    vectors = nn.functional.normalize(torch.randn(shape, generator=generator), dim=-1)
    kept, view = {"vectors 1": vectors}, SimpleNamespace(layer=1)
    named = HiddenEdit("mlp", edit.value(lambda _, view: kept[f"vectors {view.layer}"]))
    kernels: Kernels = {}
    hooks: dict[str, Callable[[nn.Module, Any, Tensor], Any]] = {
        "nothing": lambda *_: None,
        "by_hand": lambda _, __, out: edit.by_hand(out, kept[f"vectors {view.layer}"].to(out.device)).to(out),
        "kernel": lambda _, __, out: edit.kernel(out, kept[f"vectors {view.layer}"]).to(out),
        "value": lambda _, __, out: apply_edit(named, out, view, kernels).to(out),
    }
    layers: dict[str, nn.Module] = {}
    for name, hook in hooks.items():
        layers[name] = nn.Identity()
        layers[name].register_forward_hook(hook)
    return layers, torch.randn(1, 1, width, generator=generator).to(dtype)


def measure(layer: nn.Module, hidden: Tensor, calls: int) -> float:
    """Return microseconds of one call on the processor: what others run meanwhile does not count."""
    start = time.thread_time()
    for _ in range(calls):
        layer(hidden)
    return (time.thread_time() - start) / calls * 1e6


def race(layers: dict[str, nn.Module], hidden: Tensor, rounds: int, calls: int) -> dict[str, list[float]]:
    """Return microseconds of every form, one number for each round; the order within a round rotates."""
    times: dict[str, list[float]] = {name: [] for name in layers}
    order = list(layers)
    for name in order:
        measure(layers[name], hidden, calls)
    for _ in range(rounds):
        for name in order:
            times[name].append(measure(layers[name], hidden, calls))
        order = [*order[1:], *order[:1]]
    return times


def main(given: Sequence[str] | None = None) -> int:
    """Time every edit, write and print the page."""
    parser = argparse.ArgumentParser(description="What an edit of one layer's states costs on the CPU.")
    parser.add_argument("--out", type=Path, required=True, help="folder for hidden_edits.json and hidden_edits.md")
    parser.add_argument("--tiny", action="store_true", help="few rounds, to see that the script runs")
    asked = parser.parse_args(given)
    torch.set_num_threads(1)
    about = machine(torch.device("cpu"))
    results = Results(asked.out, "hidden_edits", "Edits of hidden states on the CPU", about, SHOWN, csv=False)
    results.notes.extend(NOTES)
    with torch.no_grad():
        for dtype, edit, width in itertools.product(DTYPES, EDITS, WIDTHS):
            layers, hidden = list_layers(edit, width, dtype)
            times = race(layers, hidden, *((2, 3) if asked.tiny else (ROUNDS, CALLS)))
            ratios = [mine / other for mine, other in zip(times["value"], times["by_hand"], strict=True)]
            row = {"edit": edit.name, "width": width, "dtype": str(dtype).removeprefix("torch.")}
            for name, values in times.items():
                row |= spread(f"{name}_us", values)
            results.add(**row, **spread("value_over_hand", ratios))
    results.write()
    print(results.markdown())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
