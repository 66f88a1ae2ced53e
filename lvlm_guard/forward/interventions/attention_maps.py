"""The arithmetic of one attention call: scores, mask, probabilities, head outputs, with all that models add."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lvlm_guard.errors import ModelRefused

TOLERANCE = 1e-3
HALF_TOLERANCE = 5e-2
"""How far head outputs may be from the model's own, as a share of their size."""

_proven: weakref.WeakKeyDictionary[nn.Module, set[tuple[str, bool]]] = weakref.WeakKeyDictionary()
"""Attention modules whose outputs were computed again as they are: by implementation, and whether for one query."""


@dataclass(frozen=True)
class AttentionMaps:
    """The arguments of one attention call.

    Args:
        module: The attention module.
        query: `[rows, heads, queries, size]`.
        key: `[rows, groups, keys, size]`.
        value: `[rows, groups, keys, size]`.
        mask: Bool or additive, for some of the keys more than there are; None where causality says all.
        options: What else the model hands to its attention, as far as the attention uses it.
        implementation: Name of the attention that runs.
    """

    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    options: Mapping[str, Any]
    implementation: str

    def scores(self, rows: slice, start: int) -> Tensor:
        """Scaled scores before mask and softmax, position biases included; fp32 `[rows, heads, queries, keys]`.

        Rounded to the model's dtype only where the model's own attention rounds them.
        """
        query, key = self.query[rows, :, start:], self.key[rows].transpose(-1, -2)
        if self.implementation != "eager":
            query, key = query.float(), key.float()
        scaling, softcap, bias = (self.options.get(name) for name in ("scaling", "softcap", "position_bias"))
        scale = self.query.shape[-1] ** -0.5 if scaling is None else scaling
        scores = _multiply(query, key).float() * scale
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        return scores if bias is None else scores + _select(bias, rows, start)

    def probabilities(self, scores: Tensor, rows: slice, start: int) -> Tensor:
        """Masked scores through the softmax; where the model has sinks, they take their share and are left out."""
        masked = self._mask(scores, rows, start)
        sinks = self._sinks(rows, start)
        if sinks is None:
            return masked.softmax(-1, dtype=torch.float32)
        share = sinks.float().expand(*masked.shape[:-1], -1)
        return torch.cat([masked, share], dim=-1).softmax(-1, dtype=torch.float32)[..., : masked.shape[-1]]

    def outputs(self, probabilities: Tensor, rows: slice) -> Tensor:
        """Head outputs, fp32 `[rows, heads, queries, size]`."""
        values = self.value[rows]
        return _multiply(probabilities.to(values.dtype), values).float()

    def prove(self, rows: slice, start: int, valid: Tensor, output: Tensor) -> None:
        """Check, once for each module, that unedited queries computed again give what the model computed.

        Args:
            rows: The rows computed again.
            start: The first query.
            valid: Which queries are no padding, bool `[rows, queries]`.
            output: What the model computed `[all rows, all queries, heads, size]`.

        Raises:
            ModelRefused: Something is left out, for example a term that this model adds to its scores.
        """
        kind = self.implementation, self.query.shape[2] == 1
        if kind in _proven.get(self.module, ()):
            return
        again = self.outputs(self.probabilities(self.scores(rows, start), rows, start), rows).transpose(1, 2)
        computed = output[rows, start:].float()
        valid = valid[:, start:].to(computed.device)
        if not bool(computed[valid].isfinite().all()):
            return  # an error of its own once the forward has run
        size = computed[valid].square().mean().sqrt().clamp_min(torch.finfo(torch.float32).tiny)
        error = float((again - computed)[valid].square().mean().sqrt() / size)
        if not error <= (TOLERANCE if output.dtype in (torch.float32, torch.float64) else HALF_TOLERANCE):
            raise ModelRefused(
                f"{type(self.module).__name__} computes its attention in a way of its own: computed again unedited, it "
                f"differs by {error:.2g} of its size, so edits of attention would not be exact. Choose a strategy that does "
                "not edit or observe attention."
            )
        _proven.setdefault(self.module, set()).add(kind)

    def _mask(self, scores: Tensor, rows: slice, start: int) -> Tensor:
        lowest = torch.finfo(scores.dtype).min
        if self.mask is not None:
            mask = _select(self.mask, rows, start)[..., : scores.shape[-1]]
            return scores.masked_fill(~mask, lowest) if mask.dtype == torch.bool else scores + mask
        queries, keys = scores.shape[-2:]
        if not self._is_causal or self.query.shape[2] == 1:
            return scores
        hidden = torch.ones(queries, keys, dtype=torch.bool, device=scores.device).triu(keys - queries + 1)
        return scores.masked_fill(hidden, lowest)

    @property
    def _is_causal(self) -> bool:
        """Whether queries see no later keys where no mask says so, as `sdpa` decides it; eager attention hides nothing."""
        stated = self.options.get("is_causal")
        causal = getattr(self.module, "is_causal", True) if stated is None else stated
        return bool(causal) and self.implementation != "eager"

    @property
    def has_sinks(self) -> bool:
        """Whether something beside the keys takes a share of every query's attention."""
        return self._sinks(slice(None), 0) is not None

    def _sinks(self, rows: slice, start: int) -> Tensor | None:
        """What takes a share of every query's attention: a number for each head, or one more score."""
        if (scores := self.options.get("sinks")) is not None:
            return _select(scores, rows, start)
        heads: Tensor | None = self.options.get("s_aux")
        return None if heads is None else heads.reshape(1, -1, 1, 1)


def _multiply(heads: Tensor, groups: Tensor) -> Tensor:
    """`[rows, heads, queries, n]` times what groups of heads share `[rows, groups, n, m]`, without repeating it."""
    rows, _, queries, size = heads.shape
    folded = heads.reshape(rows, groups.shape[1], -1, size) @ groups
    return folded.reshape(rows, -1, queries, groups.shape[-1])


def _select(values: Tensor, rows: slice, start: int) -> Tensor:
    """Rows and queries of a mask or of scores `[rows or 1, heads or 1, queries or 1, keys]`."""
    values = values[rows] if values.shape[0] > 1 else values
    return values[:, :, start:] if values.shape[2] > 1 else values
