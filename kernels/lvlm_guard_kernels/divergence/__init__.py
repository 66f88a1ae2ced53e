"""Row statistics of logits, and divergences between the distributions of rows.

All are fp32 on the device of the logits, which may be of any float dtype and strides; nothing is differentiable. A token
at `-inf` has no probability. A row that holds NaN, or nothing but `-inf`, has no distribution: what needs one is NaN
there. So is it with `+inf`, except that the log-sum-exp and the best logit are `+inf`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lvlm_guard_kernels.dispatch import provider
from lvlm_guard_kernels.divergence import eager
from lvlm_guard_kernels.divergence.reference import Mode as Mode
from lvlm_guard_kernels.divergence.reference import RowStatistics as RowStatistics


def statistics(logits: Tensor) -> RowStatistics:
    """Log-sum-exp, entropy in nats, probability and logit of the best token, in one pass.

    Args:
        logits: Rows `[..., vocab]`.

    Returns:
        Four tensors `[...]`. A row of nothing but `-inf` has that as log-sum-exp and best logit.

    Raises:
        ValueError: The vocabulary is empty.
        KernelsUnavailable: `LVLM_GUARD_KERNELS` asks for what cannot run here.
    """
    found: RowStatistics = _chosen("statistics", logits).statistics(logits)
    return found


def log_sum_exp(logits: Tensor) -> Tensor:
    """`ln sum exp(logits)` `[...]` of rows `[..., vocab]`: a logit minus it is a log-probability."""
    found: Tensor = _chosen("statistics", logits).log_sum_exp(logits)
    return found


def entropy(logits: Tensor) -> Tensor:
    """Shannon entropy in nats `[...]` of rows `[..., vocab]`: 0 to `ln vocab`."""
    found: Tensor = _chosen("statistics", logits).entropy(logits)
    return found


def max_probability(logits: Tensor) -> Tensor:
    """Probability of the best token `[...]` of rows `[..., vocab]`."""
    found: Tensor = _chosen("statistics", logits).max_probability(logits)
    return found


def kl(one: Tensor, other: Tensor) -> Tensor:
    """Kullback-Leibler divergence `KL(one | other)` in nats between rows.

    Args:
        one: Logits `[..., vocab]`; the expectation is under these.
        other: Logits of the same shape.

    Returns:
        `[...]`, at least 0; `+inf` where `other` rules out a token that `one` does not.

    Raises:
        ValueError: The shapes differ, or the vocabulary is empty.
        KernelsUnavailable: `LVLM_GUARD_KERNELS` asks for what cannot run here.
    """
    found: Tensor = _chosen("kl", one, other[None]).kl(one, other)
    return found


def jensen_shannon(one: Tensor, other: Tensor) -> Tensor:
    """Jensen-Shannon divergence `(KL(p | m) + KL(q | m)) / 2` in nats between rows, with the mean `m` of both.

    Args:
        one: Logits `[..., vocab]`.
        other: Logits of the same shape.

    Returns:
        `[...]`, from 0 to `ln 2`.

    Raises:
        ValueError: The shapes differ, or the vocabulary is empty.
        KernelsUnavailable: `LVLM_GUARD_KERNELS` asks for what cannot run here.
    """
    found: Tensor = _chosen("jensen_shannon", one, other[None]).layer_divergence(one, other[None])[0]
    return found


def layer_divergence(main: Tensor, layers: Tensor, mode: Mode = "jensen_shannon") -> Tensor:
    """Divergence of each layer's rows from main's (DoLa, arXiv 2309.03883, section 2.2).

    Args:
        main: Logits `[rows, positions, vocab]`, or any `[..., vocab]`.
        layers: Logits `[layers, ...]`, each of main's shape; a dtype of their own is fine.
        mode: `jensen_shannon` is the paper's. `released` is what the authors' code computes, up to a factor that is
            the same for all layers: `KL(m | p) + KL(m | q)`, without the halves.

    Returns:
        `[layers, ...]` in nats, at least 0; `released` is `+inf` where one of both rules out a token of the other.

    Raises:
        ValueError: The shapes do not fit, the vocabulary is empty, or the mode is none of these.
        KernelsUnavailable: `LVLM_GUARD_KERNELS` asks for what cannot run here.
    """
    if mode not in ("jensen_shannon", "released"):
        raise ValueError(f"layer_divergence: mode={mode!r} is neither 'jensen_shannon' nor 'released'.")
    found: Tensor = _chosen("layer_divergence", main, layers).layer_divergence(main, layers, mode)
    return found


def _chosen(kernel: str, logits: Tensor, layers: Tensor | None = None) -> Any:
    """The module that runs a kernel on logits that fit."""
    if logits.shape[-1] == 0:
        raise ValueError(f"{kernel}: logits of shape {tuple(logits.shape)} have no tokens in their last dimension.")
    if layers is not None and layers.shape[1:] != logits.shape:
        raise ValueError(f"{kernel}: {tuple(layers.shape[1:])} does not fit logits of shape {tuple(logits.shape)}.")
    if provider(kernel, logits, *([] if layers is None else [layers])) == "torch":
        return eager
    from lvlm_guard_kernels.divergence import fused  # noqa: PLC0415 - Triton is loaded where it runs

    return fused
