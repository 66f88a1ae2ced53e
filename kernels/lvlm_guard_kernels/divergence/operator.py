"""Statistics and divergences as operators of torch."""

from __future__ import annotations

import torch
from torch import Tensor

from lvlm_guard_kernels.divergence.running import run_divergence, run_statistics
from lvlm_guard_kernels.operators import define


def _measure(logits: Tensor) -> Tensor:
    """Return log-sum-exp, entropy, greatest probability and best logit, stacked: results of an operator share no memory."""
    measured = run_statistics(logits)
    return torch.stack([measured.log_sum_exp, measured.entropy, measured.max_probability, measured.best])


def _describe_statistics(logits: Tensor) -> Tensor:
    return logits.new_empty((4, *logits.shape[:-1]), dtype=torch.float32)


def _diverge(main: Tensor, layers: Tensor, kind: str) -> Tensor:
    return run_divergence(main, layers, kind)


def _describe_divergence(main: Tensor, layers: Tensor, kind: str) -> Tensor:
    del main, kind
    return layers.new_empty(layers.shape[:-1], dtype=torch.float32)


statistics = define("statistics", "(Tensor logits) -> Tensor", _measure, _describe_statistics)
diverge = define("diverge", "(Tensor main, Tensor layers, str kind) -> Tensor", _diverge, _describe_divergence)
