"""Arithmetic on logits: tensors in, tensors out; knows no strategy and no model."""

from lvlm_guard_kernels.reference import DEMOTION as DEMOTION
from lvlm_guard_kernels.reference import combine as combine
from lvlm_guard_kernels.reference import entropy as entropy
from lvlm_guard_kernels.reference import jensen_shannon as jensen_shannon
from lvlm_guard_kernels.reference import max_probability as max_probability

__all__ = ["DEMOTION", "combine", "entropy", "jensen_shannon", "max_probability"]
