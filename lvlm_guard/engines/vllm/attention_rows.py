"""Attention of some rows of one request, computed again from queries, keys and values: as it is, and edited."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lvlm_guard.forward.interventions.attention_edits import operate
from lvlm_guard.strategy.edits import AttentionEdit


@dataclass(frozen=True, eq=False)
class PlacedEdit:
    """An attention edit in one step, of one request.

    Args:
        edit: The edit, whose operation has a name.
        queries: At which rows of the request it applies, bool `[rows]`.
        keys: Its key set among the positions so far, bool `[positions]`.
    """

    edit: AttentionEdit
    queries: Tensor
    keys: Tensor


@dataclass(frozen=True, eq=False)
class _Keys:
    """What named operations look at."""

    keys: Tensor


@dataclass(frozen=True, eq=False)
class AttentionRows:
    """Rows whose attention is computed again, in fp32.

    Args:
        query: `[rows, heads, size]`.
        positions: Position of each row, int64 `[rows]`.
        scale: What scores are multiplied by.
    """

    query: Tensor
    positions: Tensor
    scale: float

    def compute(self, key: Tensor, value: Tensor, edits: Sequence[PlacedEdit]) -> tuple[Tensor, Tensor]:
        """Return outputs `[rows, heads, size]` without the edits, and with them in their order, stage by stage.

        Args:
            key: Of every position so far `[positions, key heads, size]`.
            value: Likewise.
            edits: The edits.
        """
        repeats = self.query.shape[1] // key.shape[1]
        key, value = (tensor.float().repeat_interleave(repeats, dim=1) for tensor in (key, value))
        scores = torch.einsum("rhs,phs->hrp", self.query.float(), key)[None] * self.scale
        plain = self._read(self._normalise(scores), value)
        edited = self._normalise(_edit("scores", scores, edits))
        outputs = self._read(_edit("probabilities", edited, edits), value)
        return plain[0].transpose(0, 1), _edit("outputs", outputs, edits)[0].transpose(0, 1)

    def _normalise(self, scores: Tensor) -> Tensor:
        """Return probabilities `[1, heads, rows, positions]`, none for positions behind a row."""
        ahead = torch.arange(scores.shape[-1], device=scores.device) > self.positions[:, None]
        return scores.masked_fill(ahead, torch.finfo(scores.dtype).min).softmax(-1)

    @staticmethod
    def _read(probabilities: Tensor, value: Tensor) -> Tensor:
        return torch.einsum("bhrp,phs->bhrs", probabilities, value)


def _edit(stage: str, tensor: Tensor, edits: Sequence[PlacedEdit]) -> Tensor:
    """Apply the edits of one stage to `[1, heads, rows, ...]`, each at its own rows and heads."""
    for placed in edits:
        if placed.edit.stage != stage:
            continue
        view: Any = _Keys(placed.keys[None])
        edited = operate(placed.edit, tensor, view)
        if placed.edit.renormalise and stage == "probabilities":
            edited = edited / edited.sum(-1, keepdim=True).clamp_min(1e-12)
        tensor = torch.where(_find_places(placed, tensor), edited, tensor)
    return tensor


def _find_places(placed: PlacedEdit, tensor: Tensor) -> Tensor:
    """Return where an edit applies, bool `[1, heads or 1, rows, 1]`."""
    rows = placed.queries[None, None, :, None]
    if placed.edit.heads is None:
        return rows
    heads = torch.zeros(tensor.shape[1], dtype=torch.bool, device=tensor.device)
    heads[list(placed.edit.heads)] = True
    return rows & heads[None, :, None, None]
