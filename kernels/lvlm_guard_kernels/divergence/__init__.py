"""Row statistics of logits, and divergences between the distributions of rows.

All are fp32 on the device of the logits, which may be of any float dtype and strides; nothing is differentiated. A token
at `-inf` has no probability. A row that holds NaN, or only `-inf`, has no distribution: results that need one are NaN
there. The same is true of a row that holds `+inf`, except that its log-sum-exp and best logit are `+inf`.
"""

from __future__ import annotations

from torch import Tensor

from lvlm_guard_kernels.combination import without_gradient
from lvlm_guard_kernels.deprecation import accept_keywords
from lvlm_guard_kernels.dispatch import find_provider
from lvlm_guard_kernels.divergence import operator
from lvlm_guard_kernels.divergence.reference import Mode as Mode
from lvlm_guard_kernels.divergence.reference import RowStatistics as RowStatistics
from lvlm_guard_kernels.divergence.running import check_rows, choose_module, run_divergence, run_statistics
from lvlm_guard_kernels.operators import is_traced


@without_gradient
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
    check_rows(logits, "statistics")
    if is_traced(logits):
        return RowStatistics(*operator.statistics(logits).unbind())
    return run_statistics(logits)


@without_gradient
def log_sum_exp(logits: Tensor) -> Tensor:
    """Return `ln sum exp(logits)` `[...]` of rows `[..., vocab]`: a logit minus it is a log-probability."""
    return _measure_alone("log_sum_exp", logits)


@without_gradient
def entropy(logits: Tensor) -> Tensor:
    """Return the Shannon entropy in nats `[...]` of rows `[..., vocab]`: 0 to `ln vocab`."""
    return _measure_alone("entropy", logits)


@without_gradient
def max_probability(logits: Tensor) -> Tensor:
    """Return the probability of the best token `[...]` of rows `[..., vocab]`."""
    return _measure_alone("max_probability", logits)


class StatisticsOnDemand:
    """Row statistics of logits, each computed when it is first asked for; where one launch gives all, all of them then.

    Args:
        logits: Rows `[..., vocab]`.

    Raises:
        ValueError: The logits are not what `statistics` takes.
    """

    def __init__(self, logits: Tensor) -> None:
        check_rows(logits, "statistics")
        self._logits = logits
        self._results: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        """Return `log_sum_exp`, `entropy`, `max_probability` or `best`, fp32 `[...]`."""
        if name not in self._results:
            self._results |= self._compute(name)
        return self._results[name]

    def _compute(self, name: str) -> dict[str, Tensor]:
        if name != "best" and find_provider(self._logits) == "torch":
            return {name: _measure_alone(name, self._logits)}
        return dict(vars(statistics(self._logits)))


@accept_keywords(one="p_logits", other="q_logits")
@without_gradient
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
    return _diverge("kl", p_logits, q_logits[None], "kl")[0]


@accept_keywords(one="p_logits", other="q_logits")
@without_gradient
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
    return _diverge("jensen_shannon", p_logits, q_logits[None], "jensen_shannon")[0]


@without_gradient
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
    return _diverge("layer_divergence", main, layers, mode)


def _diverge(kernel: str, main: Tensor, layers: Tensor, kind: str) -> Tensor:
    check_rows(main, kernel, layers)
    if is_traced(main, layers):
        divergences: Tensor = operator.diverge(main, layers, kind)
        return divergences
    return run_divergence(main, layers, kind, kernel)


@without_gradient
def _measure_alone(name: str, logits: Tensor) -> Tensor:
    """Return one statistic, for which torch reads less than for all of them."""
    check_rows(logits, "statistics")
    if is_traced(logits):
        measured: Tensor = getattr(RowStatistics(*operator.statistics(logits).unbind()), name)
    else:
        measured = getattr(choose_module("statistics", logits), name)(logits)
    return measured
