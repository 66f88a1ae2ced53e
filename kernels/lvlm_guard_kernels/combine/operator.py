"""`combine` as an operator of torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lvlm_guard_kernels.combine.running import run_combine
from lvlm_guard_kernels.operators import COMBINATION, build_combination, define


def _combine(*parts: Any) -> Tensor:
    return run_combine(build_combination(*parts))


def _describe(main: Tensor, *parts: Any) -> Tensor:
    del parts
    return main.new_empty(main.shape, dtype=torch.float32)


combine = define("combine", f"({COMBINATION}) -> Tensor", _combine, _describe)
