"""Row statistics of logits, and divergences between the distributions of rows.

All are fp32 on the device of the logits, which may be of any float dtype and strides; nothing is differentiable. A token
at `-inf` has no probability. A row that holds NaN, or only `-inf`, has no distribution: results that need one are NaN
there. The same is true of a row that holds `+inf`, except that its log-sum-exp and best logit are `+inf`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lvlm_guard_kernels.combination import check_logits
from lvlm_guard_kernels.deprecation import accept_keywords
from lvlm_guard_kernels.dispatch import choose_provider
from lvlm_guard_kernels.divergence import eager
from lvlm_guard_kernels.divergence.reference import Mode as Mode
from lvlm_guard_kernels.divergence.reference import RowStatistics as RowStatistics


def statistics(logits: Tensor) -> RowStatistics:
    """Return log-sum-exp, entropy in nats, probability and logit of the best token, in one pass.

    Args:
        logits: Rows `[..., vocab]`.

    Returns:
        Four tensors `[...]`. A row that holds only `-inf` has that as log-sum-exp and best logit.

    Raises:
        ValueError: The vocabulary is empty.
        KernelsUnavailable: `LVLM_GUARD_KERNELS` names an implementation that cannot run here.
    """
    result: RowStatistics = _choose_module("statistics", logits).statistics(logits)
    return result


def log_sum_exp(logits: Tensor) -> Tensor:
    """Return `ln sum exp(logits)` `[...]` of rows `[..., vocab]`: a logit minus it is a log-probability."""
    result: Tensor = _choose_module("statistics", logits).log_sum_exp(logits)
    return result


def entropy(logits: Tensor) -> Tensor:
    """Return the Shannon entropy in nats `[...]` of rows `[..., vocab]`: 0 to `ln vocab`."""
    result: Tensor = _choose_module("statistics", logits).entropy(logits)
    return result


def max_probability(logits: Tensor) -> Tensor:
    """Return the probability of the best token `[...]` of rows `[..., vocab]`."""
    result: Tensor = _choose_module("statistics", logits).max_probability(logits)
    return result


@accept_keywords(one="p_logits", other="q_logits")
def kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence `KL(p | q)` in nats between rows.

    Args:
        p_logits: Logits `[..., vocab]` of `p`, under which the expectation is taken.
        q_logits: Logits of `q`, of the same shape.

    Returns:
        `[...]`, at least 0; `+inf` where `q` rules out a token that `p` does not.

    Raises:
        ValueError: The shapes differ, or the vocabulary is empty.
        KernelsUnavailable: `LVLM_GUARD_KERNELS` names an implementation that cannot run here.
    """
    result: Tensor = _choose_module("kl", p_logits, q_logits[None]).kl(p_logits, q_logits)
    return result


@accept_keywords(one="p_logits", other="q_logits")
def jensen_shannon(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence `(KL(p | m) + KL(q | m)) / 2` in nats between rows, `m` the mean of both.

    Args:
        p_logits: Logits `[..., vocab]` of `p`.
        q_logits: Logits of `q`, of the same shape.

    Returns:
        `[...]`, from 0 to `ln 2`.

    Raises:
        ValueError: The shapes differ, or the vocabulary is empty.
        KernelsUnavailable: `LVLM_GUARD_KERNELS` names an implementation that cannot run here.
    """
    layers = q_logits[None]
    result: Tensor = _choose_module("jensen_shannon", p_logits, layers).layer_divergence(p_logits, layers)[0]
    return result


def layer_divergence(main: Tensor, layers: Tensor, mode: Mode = "jensen_shannon") -> Tensor:
    """Return the divergence of each layer's rows from main's (DoLa, arXiv 2309.03883, section 2.2).

    Args:
        main: Logits `[rows, positions, vocab]`, or any `[..., vocab]`.
        layers: Logits `[layers, ...]`, each of main's shape; their dtype may differ.
        mode: `jensen_shannon` is that of the paper. `released` is what the authors' code computes, up to a factor that is
            the same for all layers: `KL(m | p) + KL(m | q)`, without the halves.

    Returns:
        `[layers, ...]` in nats, at least 0; `released` is `+inf` where only one of the two rules out a token.

    Raises:
        ValueError: The shapes do not fit, the vocabulary is empty, or the mode is unknown.
        KernelsUnavailable: `LVLM_GUARD_KERNELS` names an implementation that cannot run here.
    """
    if mode not in ("jensen_shannon", "released"):
        raise ValueError(f"layer_divergence: mode={mode!r} is neither 'jensen_shannon' nor 'released'.")
    result: Tensor = _choose_module("layer_divergence", main, layers).layer_divergence(main, layers, mode)
    return result


def _choose_module(kernel: str, logits: Tensor, layers: Tensor | None = None) -> Any:
    """Check that tensors fit, and return the module that runs a kernel."""
    check_logits(kernel, logits, *([] if layers is None else [layers]))
    if logits.dim() == 0 or logits.shape[-1] == 0:
        raise ValueError(f"{kernel}: logits of shape {tuple(logits.shape)} have no tokens in their last dimension.")
    if layers is not None and layers.shape[1:] != logits.shape:
        raise ValueError(f"{kernel}: {tuple(layers.shape[1:])} does not fit logits of shape {tuple(logits.shape)}.")
    if choose_provider(kernel, logits, *([] if layers is None else [layers])) == "torch":
        return eager
    from lvlm_guard_kernels.divergence import fused  # noqa: PLC0415 - Triton is loaded where it runs

    return fused
