"""The definition of every row statistic and divergence in fp32 torch, and the oracle of the faster implementations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Mode: TypeAlias = Literal["jensen_shannon", "released"]

FLOOR = -200.0
"""The exponential of anything below it is 0 in fp32."""


@dataclass(frozen=True)
class RowStatistics:
    """Statistics of rows `[..., vocab]`, each fp32 `[...]`."""

    log_sum_exp: Tensor
    """`ln sum exp(logits)`."""
    entropy: Tensor
    """Shannon entropy in nats."""
    max_probability: Tensor
    """Probability of the best token."""
    best: Tensor
    """Logit of the best token."""


def statistics(logits: Tensor) -> RowStatistics:
    """Define `lvlm_guard_kernels.statistics`."""
    best = logits.float().amax(-1)
    return RowStatistics(log_sum_exp(logits), entropy(logits), max_probability(logits), best)


def log_sum_exp(logits: Tensor) -> Tensor:
    """Define `lvlm_guard_kernels.log_sum_exp`."""
    return logits.float().logsumexp(-1)


def entropy(logits: Tensor) -> Tensor:
    """Define `lvlm_guard_kernels.entropy`."""
    surprise: Tensor = torch.special.entr(logits.float().softmax(-1))
    return surprise.sum(-1)


def max_probability(logits: Tensor) -> Tensor:
    """Define `lvlm_guard_kernels.max_probability`."""
    return logits.float().softmax(-1).amax(-1)


def kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """Define `lvlm_guard_kernels.kl`."""
    return _compute_kl_terms(p_logits.float().log_softmax(-1), q_logits.float().log_softmax(-1)).sum(-1).clamp_min(0.0)


def layer_divergence(main: Tensor, layers: Tensor, mode: Mode = "jensen_shannon") -> Tensor:
    """Define `lvlm_guard_kernels.layer_divergence`."""
    p, q = main.float().log_softmax(-1), layers.float().log_softmax(-1)
    mean = torch.logaddexp(p, q) - math.log(2)
    if mode == "released":
        terms = _compute_kl_terms(mean, p) + _compute_kl_terms(mean, q)
    else:
        terms = (_compute_kl_terms(p, mean) + _compute_kl_terms(q, mean)) / 2
    return terms.sum(-1).clamp_min(0.0)


def _compute_kl_terms(p: Tensor, q: Tensor) -> Tensor:
    """Return what each token adds to `KL(p | q)`: nothing where p rules it out, `+inf` where only q does."""
    gap = p - q
    return (p.exp() * gap).masked_fill(gap == math.inf, math.inf).masked_fill(p == -math.inf, 0.0)
