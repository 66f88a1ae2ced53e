"""Statistics and divergences where torch runs them: a few layers at a time, so that they stay in cache."""

from __future__ import annotations

import torch
from torch import Tensor

from lvlm_guard_kernels.divergence import reference
from lvlm_guard_kernels.divergence.reference import Mode, RowStatistics

CACHED = 65536
"""Logits per thread that are worked on at a time: 256 KiB in fp32, of which some four copies are alive."""
FLOOR = -200.0
"""In fp32 the exponential of anything under it is 0."""
TINY = 1e-45
"""Smallest number above 0 in fp32: keeps the mean's logarithm finite where both probabilities are 0."""

log_sum_exp = reference.log_sum_exp


def statistics(logits: Tensor) -> RowStatistics:
    """As `lvlm_guard_kernels.divergence.statistics`."""
    best = logits.amax(-1, keepdim=True).float()
    shifted = (logits.float() - best).clamp_min_(FLOOR)
    weights = shifted.exp()
    total = weights.sum(-1)
    spread = shifted.mul_(weights).sum(-1) / total
    best = best.squeeze(-1)
    known = torch.where(best.isinf(), best, best + total.log())
    return RowStatistics(known, total.log() - spread, 1.0 / total, best)


def max_probability(logits: Tensor) -> Tensor:
    """As `lvlm_guard_kernels.max_probability`."""
    return 1.0 / (logits.float() - logits.amax(-1, keepdim=True).float()).exp_().sum(-1)


def entropy(logits: Tensor) -> Tensor:
    """As `lvlm_guard_kernels.entropy`."""
    return statistics(logits).entropy


def kl(one: Tensor, other: Tensor) -> Tensor:
    """As `lvlm_guard_kernels.kl`."""
    if not one.is_cpu:
        return reference.kl(one, other)
    log_p, p = _probabilities(one)
    log_q, _ = _probabilities(other)
    found = log_p.sub_(log_q).mul_(p).sum(-1).clamp_min_(0.0)
    return found if bool(found.isfinite().all()) else reference.kl(one, other)


def layer_divergence(main: Tensor, layers: Tensor, mode: Mode = "jensen_shannon") -> Tensor:
    """As `lvlm_guard_kernels.layer_divergence`."""
    if not main.is_cpu or layers.numel() == 0:
        return reference.layer_divergence(main, layers, mode)  # a GPU would have to be waited for
    log_p, p = _probabilities(main)
    half = (p / 2).clamp_min_(TINY)
    measure = _released if mode == "released" else _jensen_shannon
    found = []
    step = max(1, CACHED * torch.get_num_threads() // main.numel())
    for first in range(0, len(layers), step):
        some = layers[first : first + step]
        one = measure(log_p, p, half, *_probabilities(some)).clamp_min_(0.0)
        if not bool(one.isfinite().all()):  # tokens ruled out, or no distribution at all
            one = reference.layer_divergence(main, some, mode)
        found.append(one)
    return torch.cat(found)


def _probabilities(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities and probabilities in fp32, in tensors of their own."""
    shifted = logits.float() - logits.amax(-1, keepdim=True).float()
    weights = shifted.exp()
    total = weights.sum(-1, keepdim=True)
    return shifted.sub_(total.log()), weights.div_(total)


def _jensen_shannon(log_p: Tensor, p: Tensor, half: Tensor, log_q: Tensor, q: Tensor) -> Tensor:
    """Jensen-Shannon divergence; overwrites what belongs to the layers."""
    log_mean = torch.add(half, q, alpha=0.5).log_()
    terms = log_q.sub_(log_mean).mul_(q)
    terms.addcmul_(log_mean.sub_(log_p), p, value=-1.0)
    return terms.sum(-1).div_(2)


def _released(log_p: Tensor, _: Tensor, half: Tensor, log_q: Tensor, q: Tensor) -> Tensor:
    """`KL(m | p) + KL(m | q)`; overwrites what belongs to the layers."""
    mean = torch.add(half, q, alpha=0.5)
    log_mean = mean.log()
    gaps = (log_mean - log_p).add_(log_mean).sub_(log_q)
    return gaps.mul_(mean).sum(-1)
