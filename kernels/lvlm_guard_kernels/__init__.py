"""Arithmetic on logits and hidden states: tensors in, tensors out; knows no strategy and no model."""

from typing import Any

from lvlm_guard_kernels.combination import Combination as Combination
from lvlm_guard_kernels.combine import combine as combine
from lvlm_guard_kernels.combine.reference import DEMOTION as DEMOTION
from lvlm_guard_kernels.deprecation import warn
from lvlm_guard_kernels.dispatch import KernelsUnavailable as KernelsUnavailable
from lvlm_guard_kernels.dispatch import record_paths as record_paths
from lvlm_guard_kernels.dispatch import settle_environment as settle_environment
from lvlm_guard_kernels.divergence import RowStatistics as RowStatistics
from lvlm_guard_kernels.divergence import StatisticsOnDemand as StatisticsOnDemand
from lvlm_guard_kernels.divergence import entropy as entropy
from lvlm_guard_kernels.divergence import jensen_shannon as jensen_shannon
from lvlm_guard_kernels.divergence import kl as kl
from lvlm_guard_kernels.divergence import layer_divergence as layer_divergence
from lvlm_guard_kernels.divergence import log_sum_exp as log_sum_exp
from lvlm_guard_kernels.divergence import max_probability as max_probability
from lvlm_guard_kernels.divergence import statistics as statistics
from lvlm_guard_kernels.hidden import project as project
from lvlm_guard_kernels.hidden import shift as shift
from lvlm_guard_kernels.hidden import turn as turn
from lvlm_guard_kernels.select import Selection as Selection
from lvlm_guard_kernels.select import select as select

__all__ = [
    "DEMOTION",
    "Combination",
    "KernelsUnavailable",
    "RowStatistics",
    "Selection",
    "StatisticsOnDemand",
    "combine",
    "entropy",
    "jensen_shannon",
    "kl",
    "layer_divergence",
    "log_sum_exp",
    "max_probability",
    "project",
    "record_paths",
    "select",
    "settle_environment",
    "shift",
    "statistics",
    "turn",
]

_RENAMED = {"Selected": "Selection", "paths": "record_paths"}


def __getattr__(name: str) -> Any:
    if name not in _RENAMED:
        raise AttributeError(f"module 'lvlm_guard_kernels' has no attribute {name!r}")
    warn(f"lvlm_guard_kernels.{name} is deprecated. Use {_RENAMED[name]} instead.")
    return globals()[_RENAMED[name]]
