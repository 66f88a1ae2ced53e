"""`select` as an operator of torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lvlm_guard_kernels.operators import COMBINATION, build_combination, define
from lvlm_guard_kernels.select.draw import Draw
from lvlm_guard_kernels.select.noise import WORD
from lvlm_guard_kernels.select.running import run_select

DRAW = "float temperature, int top_k, float top_p, int seed, int step, Tensor? step_tensor, bool greedy, Tensor? rows"


def flatten_draw(draw: Draw) -> tuple[Any, ...]:
    """Return how to draw as arguments of the operator."""
    step, step_tensor = (0, draw.step) if isinstance(draw.step, Tensor) else (draw.step & WORD, None)
    settings = float(draw.temperature), draw.top_k, float(draw.top_p), draw.signed_seed
    return *settings, step, step_tensor, bool(draw.greedy), draw.rows


def _select(*arguments: Any) -> tuple[Tensor, Tensor]:
    *parts, temperature, top_k, top_p, seed, step, step_tensor, greedy, rows = arguments
    draw = Draw(temperature, top_k, top_p, seed, step if step_tensor is None else step_tensor, greedy, rows)
    return run_select(build_combination(*parts), draw)


def _describe(main: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    del arguments
    rows = main.shape[:1]
    return main.new_empty(rows, dtype=torch.int64), main.new_empty(rows, dtype=torch.bool)


select = define("select", f"({COMBINATION}, {DRAW}) -> (Tensor, Tensor)", _select, _describe)
