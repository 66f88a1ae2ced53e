"""The arithmetic of attention edits: edited queries computed again from their queries, keys and values."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from lvlm_guard.errors import InputError
from lvlm_guard.forward.interventions.layout import ForwardLayout
from lvlm_guard.forward.interventions.running import RunningForward
from lvlm_guard.forward.interventions.views import AttentionView
from lvlm_guard.strategy.edits import AttentionCapture, AttentionEdit


@dataclass(frozen=True)
class AttentionCall:
    """The arguments of one attention call and where it happens."""

    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scale: float
    softcap: float | None
    running: RunningForward
    layer: int

    @property
    def is_cross(self) -> bool:
        """Whether the keys are the image's, not the prompt's."""
        return "Cross" in type(self.module).__name__

    def keys(self, branch: Hashable, name: str) -> Tensor:
        """A key set in this layer, bool `[rows, keys]`: sliding layers hold the newest positions only."""
        layout = self.running.layout
        rows, length = layout.rows(branch), self.key.shape[-2]
        if self.is_cross:
            return self.key.new_full((rows.stop - rows.start, length), name in ("image", "all"), dtype=torch.bool)
        where = layout.positions(branch, name)
        if length > where.shape[1]:
            raise InputError("Attention edits need a cache that grows with the tokens: drop cache_implementation.")
        return where[:, -length:].to(self.key.device)


def recompute(
    call: AttentionCall, branch: Hashable, work: Sequence[AttentionEdit | AttentionCapture], output: Tensor
) -> Tensor:
    """Compute the queries that edits and captures of one block need again, and put the edited ones into the output."""
    if not work:
        return output
    layout, rows = call.running.layout, call.running.layout.rows(branch)
    edits = [item for item in work if isinstance(item, AttentionEdit) and _applies_somewhere(item, branch, layout)]
    captures = [item for item in work if isinstance(item, AttentionCapture) and _is_due(item, layout)]
    queries = [(edit, layout.edited(branch, edit.queries, edit.when).to(output.device)) for edit in edits]
    starts = [layout.first(branch, edit.queries, edit.when) for edit in edits]
    start = min([*starts, layout.new - layout.predicting if captures else layout.new])
    if start == layout.new:
        return output
    scores = _edit_stage("scores", _scores(call, rows, start), call, branch, queries, start)
    probabilities = _mask(scores, call, rows, start).softmax(-1, dtype=torch.float32)
    probabilities = _edit_stage("probabilities", probabilities, call, branch, queries, start)
    for capture in captures:
        _observe(call, branch, capture, probabilities[:, :, -layout.predicting :])
    if not edits:
        return output
    values = _repeat_groups(call.value[rows], call.query.shape[1])
    heads = (probabilities.to(values.dtype) @ values).float()
    heads = _edit_stage("outputs", heads, call, branch, queries, start)
    where = torch.stack([mask for _, mask in queries]).any(0)
    return _put_back(output, heads, rows, where, start)


def _observe(call: AttentionCall, branch: Hashable, capture: AttentionCapture, probabilities: Tensor) -> None:
    """Keep what a capture reduces probabilities over every position so far to; those outside a window are 0."""
    layout = call.running.layout
    if call.is_cross:
        keys = call.keys(branch, capture.keys)
    else:
        keys = layout.positions(branch, capture.keys).to(probabilities.device)
        probabilities = pad(probabilities, (keys.shape[1] - probabilities.shape[-1], 0))
    queries = layout.edited(branch, "predicting", "both").to(keys.device)
    view = AttentionView(call.running, branch, call.layer, keys.device, queries, keys)
    call.running.gen.observations[capture.key, call.layer] = capture.reduce(probabilities, view)


def _applies_somewhere(edit: AttentionEdit, branch: Hashable, layout: ForwardLayout) -> bool:
    return layout.first(branch, edit.queries, edit.when) < layout.new


def _is_due(capture: AttentionCapture, layout: ForwardLayout) -> bool:
    """Whether positions that a capture observes run here: without a cache, a forward of prompt and tokens has both kinds."""
    if capture.when == "decode":
        return layout.generated > 0
    return capture.when == "both" or not layout.is_decoding


def _scores(call: AttentionCall, rows: slice, start: int) -> Tensor:
    """Scaled scores before mask and softmax, fp32 `[rows, heads, queries, keys]`."""
    query = call.query[rows, :, start:]
    scores = (query @ _repeat_groups(call.key[rows], query.shape[1]).transpose(-1, -2)).float() * call.scale
    return scores if call.softcap is None else torch.tanh(scores / call.softcap) * call.softcap


def _repeat_groups(grouped: Tensor, heads: int) -> Tensor:
    """Grouped keys or values `[rows, groups, keys, size]` for every head."""
    return grouped.repeat_interleave(heads // grouped.shape[1], dim=1)


def _mask(scores: Tensor, call: AttentionCall, rows: slice, start: int) -> Tensor:
    if call.mask is not None:
        mask = call.mask[rows] if call.mask.shape[0] > 1 else call.mask
        mask = mask[:, :, start:, : scores.shape[-1]]
        return scores.masked_fill(~mask, torch.finfo(scores.dtype).min) if mask.dtype == torch.bool else scores + mask
    queries, keys = scores.shape[-2:]
    if call.is_cross or queries == 1 or not getattr(call.module, "is_causal", True):
        return scores
    hidden = torch.ones(queries, keys, dtype=torch.bool, device=scores.device).triu(keys - queries + 1)
    return scores.masked_fill(hidden, torch.finfo(scores.dtype).min)


def _edit_stage(
    stage: str,
    tensor: Tensor,
    call: AttentionCall,
    branch: Hashable,
    queries: Sequence[tuple[AttentionEdit, Tensor]],
    start: int,
) -> Tensor:
    """Apply the edits of one stage, each to its own queries, keys and heads."""
    for edit, where in queries:
        if edit.stage != stage:
            continue
        keys = call.keys(branch, edit.keys)
        view = AttentionView(call.running, branch, call.layer, keys.device, where[:, start:], keys)
        edited = _operate(edit, tensor, view)
        if edited.shape != tensor.shape:
            raise InputError(f"An attention edit returned {tuple(edited.shape)} for {tuple(tensor.shape)}.")
        if edit.renormalise and stage == "probabilities":
            edited = edited / edited.sum(-1, keepdim=True).clamp_min(1e-12)
        merged = torch.where(_applies(edit, where, start, tensor), edited, tensor)
        if call.running.owner is not None:
            call.running.owner.effects.record(id(edit), tensor, merged)
        tensor = merged
    return tensor


def _applies(edit: AttentionEdit, where: Tensor, start: int, tensor: Tensor) -> Tensor:
    """The queries and heads of an edit, bool `[rows, heads or 1, queries, 1]`."""
    queries = where[:, None, start:, None]
    if edit.heads is None:
        return queries
    heads = torch.zeros(tensor.shape[1], dtype=torch.bool, device=tensor.device)
    heads[list(edit.heads)] = True
    return queries & heads[None, :, None, None]


def _operate(edit: AttentionEdit, tensor: Tensor, view: AttentionView) -> Tensor:
    if callable(edit.operation):
        return edit.operation(tensor, view)
    if edit.operation == "gate_heads":
        return tensor * edit.amount
    scored = {
        "add": lambda: tensor + edit.amount,
        "scale": lambda: tensor * edit.amount,
        "add_abs": lambda: tensor + edit.amount * tensor.abs(),
        "mask": lambda: torch.full_like(tensor, torch.finfo(tensor.dtype).min),
        "scale_probabilities": lambda: tensor * edit.amount,
    }[edit.operation]()
    return torch.where(view.keys[:, None, None, :], scored, tensor)


def _put_back(output: Tensor, heads: Tensor, rows: slice, where: Tensor, start: int) -> Tensor:
    """Edited head outputs `[rows, heads, queries, size]` into `[all rows, all queries, heads, size]`."""
    merged = output.clone()
    heads = heads.transpose(1, 2).to(output.dtype)
    merged[rows, start:] = torch.where(where[:, start:, None, None], heads, output[rows, start:])
    return merged
