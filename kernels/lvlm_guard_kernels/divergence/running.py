"""Statistics and divergences in the implementation of a call."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lvlm_guard_kernels.combination import check_logits
from lvlm_guard_kernels.dispatch import choose_provider
from lvlm_guard_kernels.divergence import eager
from lvlm_guard_kernels.divergence.reference import RowStatistics


def run_statistics(logits: Tensor) -> RowStatistics:
    """Run `statistics`."""
    result: RowStatistics = choose_module("statistics", logits).statistics(logits)
    return result


def run_divergence(main: Tensor, layers: Tensor, kind: str, kernel: str = "layer_divergence") -> Tensor:
    """Run a divergence of layers from main, or with `kl` of main from one layer."""
    module = choose_module(kernel, main, layers)
    result: Tensor = module.kl(main, layers[0])[None] if kind == "kl" else module.layer_divergence(main, layers, kind)
    return result


def check_rows(logits: Tensor, kernel: str, layers: Tensor | None = None) -> None:
    """Refuse tensors that do not fit."""
    check_logits(kernel, logits, *([] if layers is None else [layers]))
    if logits.dim() == 0 or logits.shape[-1] == 0:
        raise ValueError(f"{kernel}: logits of shape {tuple(logits.shape)} have no tokens in their last dimension.")
    if layers is not None and layers.shape[1:] != logits.shape:
        raise ValueError(f"{kernel}: {tuple(layers.shape[1:])} does not fit logits of shape {tuple(logits.shape)}.")


def choose_module(kernel: str, logits: Tensor, layers: Tensor | None = None) -> Any:
    """Return the module that runs a kernel."""
    if choose_provider(kernel, logits, *([] if layers is None else [layers])) == "torch":
        return eager
    from lvlm_guard_kernels.divergence import fused  # noqa: PLC0415 - Triton is loaded where it runs

    return fused
