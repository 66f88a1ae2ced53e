"""Statistics and divergences where torch runs them: a few layers at a time, so that they stay in cache."""

from __future__ import annotations

import torch
from torch import Tensor

from lvlm_guard_kernels.divergence import reference
from lvlm_guard_kernels.divergence.reference import FLOOR, Mode, RowStatistics

CACHED = 65536
"""Logits per thread that are processed at a time: 256 KiB in fp32, of which about four copies are alive."""
TINY = 1e-45
"""Smallest number above 0 in fp32: keeps the mean's logarithm finite where both probabilities are 0."""

log_sum_exp = reference.log_sum_exp


def statistics(logits: Tensor) -> RowStatistics:
    """Run `lvlm_guard_kernels.statistics`."""
    best = logits.amax(-1, keepdim=True).float()
    shifted = (logits.float() - best).clamp_min_(FLOOR)
    weights = shifted.exp()
    total = weights.sum(-1)
    spread = shifted.mul_(weights).sum(-1) / total
    best = best.squeeze(-1)
    log_sum = torch.where(best.isinf(), best, best + total.log())
    return RowStatistics(log_sum, total.log() - spread, 1.0 / total, best)


def max_probability(logits: Tensor) -> Tensor:
    """Run `lvlm_guard_kernels.max_probability`."""
    return 1.0 / (logits.float() - logits.amax(-1, keepdim=True).float()).exp_().sum(-1)


def entropy(logits: Tensor) -> Tensor:
    """Run `lvlm_guard_kernels.entropy`."""
    return statistics(logits).entropy


def kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """Run `lvlm_guard_kernels.kl`."""
    if not p_logits.is_cpu:
        return reference.kl(p_logits, q_logits)  # the check below would wait for a GPU
    log_p, p = _compute_probabilities(p_logits)
    log_q, _ = _compute_probabilities(q_logits)
    divergence = log_p.sub_(log_q).mul_(p).sum(-1).clamp_min_(0.0)
    return divergence if bool(divergence.isfinite().all()) else reference.kl(p_logits, q_logits)


def layer_divergence(main: Tensor, layers: Tensor, mode: Mode = "jensen_shannon") -> Tensor:
    """Run `lvlm_guard_kernels.layer_divergence`."""
    if not main.is_cpu or layers.numel() == 0:
        return reference.layer_divergence(main, layers, mode)  # the check below would wait for a GPU
    log_p, p = _compute_probabilities(main)
    half = (p / 2).clamp_min_(TINY)
    measure = _compute_released if mode == "released" else _compute_jensen_shannon
    divergences = []
    step = max(1, CACHED * torch.get_num_threads() // main.numel())
    for first in range(0, len(layers), step):
        portion = layers[first : first + step]
        divergence = measure(log_p, p, half, *_compute_probabilities(portion)).clamp_min_(0.0)
        if not bool(divergence.isfinite().all()):  # a token is ruled out, or a row has no distribution
            divergence = reference.layer_divergence(main, portion, mode)
        divergences.append(divergence)
    return torch.cat(divergences)


def _compute_probabilities(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return log-probabilities and probabilities in fp32, in new tensors."""
    shifted = logits.float() - logits.amax(-1, keepdim=True).float()
    weights = shifted.exp()
    total = weights.sum(-1, keepdim=True)
    return shifted.sub_(total.log()), weights.div_(total)


def _compute_jensen_shannon(log_p: Tensor, p: Tensor, half: Tensor, log_q: Tensor, q: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence; overwrites `log_q` and `q`."""
    log_mean = torch.add(half, q, alpha=0.5).log_()
    terms = log_q.sub_(log_mean).mul_(q)
    terms.addcmul_(log_mean.sub_(log_p), p, value=-1.0)
    return terms.sum(-1).div_(2)


def _compute_released(log_p: Tensor, _: Tensor, half: Tensor, log_q: Tensor, q: Tensor) -> Tensor:
    """Return `KL(m | p) + KL(m | q)` with the mean `m` of both."""
    mean = torch.add(half, q, alpha=0.5)
    log_mean = mean.log()
    gaps = (log_mean - log_p).add_(log_mean).sub_(log_q)
    return gaps.mul_(mean).sum(-1)
