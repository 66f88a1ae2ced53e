"""The arithmetic of attention edits: edited queries computed again from their queries, keys and values."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from lvlm_guard.errors import InputError, ModelRefused
from lvlm_guard.forward.interventions.attention_maps import AttentionMaps
from lvlm_guard.forward.interventions.layout import ForwardLayout
from lvlm_guard.forward.interventions.running import Reach, RunningForward
from lvlm_guard.forward.interventions.views import AttentionView
from lvlm_guard.strategy.edits import AttentionCapture, AttentionEdit

ATTENTION = "attention"
"""What a forward marks where it comes to attention that is edited or observed."""


@dataclass(frozen=True)
class AttentionCall:
    """One attention call of a guarded forward.

    Args:
        maps: Its arguments.
        running: The forward.
        layer: Index of the layer.
        reach: Whose keys they are, as in `Attending`.
    """

    maps: AttentionMaps
    running: RunningForward
    layer: int
    reach: Reach

    @property
    def count(self) -> int:
        """Queries; they are the last positions of the forward."""
        return int(self.maps.query.shape[2])

    def where(self, branch: Hashable, queries: str, when: Literal["prefill", "decode", "both"]) -> Tensor:
        """Which queries are in a set, bool `[rows, queries]`."""
        where = self.running.layout.edited(branch, queries, when)[:, -self.count :]
        return where.to(self.maps.query.device)

    def keys(self, branch: Hashable, name: str) -> Tensor:
        """A key set in this layer, bool `[rows, keys]`: sliding layers hold the newest positions only."""
        layout, key = self.running.layout, self.maps.key
        if self.reach == "own":
            return layout.positions(branch, name)[:, -key.shape[-2] :].to(key.device)
        across = self._keys_across(branch, name)
        if self.reach == "across":
            return across
        own_keys = layout.positions(branch, name)[:, -(key.shape[-2] - across.shape[1]) :].to(key.device)
        return torch.cat([own_keys, across], dim=1)

    def _keys_across(self, branch: Hashable, name: str) -> Tensor:
        """A key set in what stands across; without a layout of it, that is the image."""
        layout, key = self.running.layout, self.maps.key
        across = layout.prompts[branch].across
        if across is not None:
            return across.positions(name).to(key.device)
        rows = layout.rows(branch)
        return key.new_full((rows.stop - rows.start, key.shape[-2]), name in ("image", "all"), dtype=torch.bool)

    def _count_across(self, branch: Hashable) -> int:
        """How many of the keys stand across."""
        if self.reach == "own":
            return 0
        across = self.running.layout.prompts[branch].across
        return int(self.maps.key.shape[-2] if across is None else across.image.shape[1])

    def check(self, branch: Hashable) -> None:
        """Check that queries and keys are the positions they are taken for.

        Raises:
            InputError: The keys are those of a cache of fixed length.
            ModelRefused: They are others.
        """
        layout, keys = self.running.layout, self.maps.key.shape[-2]
        encoder = layout.prompts[branch].across
        if self.reach != "own" and encoder is not None and not encoder.is_known:
            raise ModelRefused(
                f"The encoder of this model read {encoder.image.shape[1]} positions, which are not those of the prompt, so which of "
                "them are the image's cannot be told. Choose a strategy that does not edit attention."
            )
        across = self._count_across(branch)
        own_keys = keys - across
        if self.reach != "across" and own_keys > layout.total:
            raise InputError("Attention edits need a cache that grows with the tokens: drop cache_implementation.")
        is_whole = own_keys == 0 if self.reach == "across" else layout.continues or own_keys == layout.total
        is_last = self.count == layout.new or self.count <= layout.predicting
        if not (is_whole and is_last and self.maps.query.shape[0] == layout.row_count):
            raise ModelRefused(
                f"Layer {self.layer} of this model attends from {self.count} to {keys} positions where the prompt has "
                f"{layout.total + across}, so which they are cannot be told. Choose a strategy that does not edit attention."
            )


def edit_attention(call: AttentionCall, work: Sequence[AttentionEdit | AttentionCapture], output: Tensor) -> Tensor:
    """Compute again what the edits and captures of a layer need, block by block; the output with what is edited."""
    call.running.mark((ATTENTION, call.reach), call.layer)
    for branch in call.running.layout.prompts:
        output = _edit_block(call, branch, [item for item in work if item.branch == branch], output)
    return output


def _edit_block(
    call: AttentionCall, branch: Hashable, work: Sequence[AttentionEdit | AttentionCapture], output: Tensor
) -> Tensor:
    """Compute the queries that edits and captures of one block need again, and put the edited ones into the output."""
    layout, rows, maps = call.running.layout, call.running.layout.rows(branch), call.maps
    edits = [item for item in work if isinstance(item, AttentionEdit) and _applies_somewhere(item, branch, layout)]
    captures = [item for item in work if isinstance(item, AttentionCapture) and _is_due(item, layout)]
    if not edits and not captures:
        return output
    call.check(branch)
    queries = [(edit, call.where(branch, edit.queries, edit.when)) for edit in edits]
    starts = [layout.first(branch, edit.queries, edit.when) for edit in edits]
    start = min([*starts, layout.new - layout.predicting if captures else layout.new])
    start = max(start - (layout.new - call.count), 0)
    maps.prove(rows, start, call.where(branch, "valid", "both"), output)
    scores = _edit_stage("scores", maps.scores(rows, start), call, branch, queries, start)
    probabilities = maps.probabilities(scores, rows, start)
    probabilities = _edit_stage("probabilities", probabilities, call, branch, queries, start)
    for capture in captures:
        _observe(call, branch, capture, probabilities[:, :, -layout.predicting :])
    if not edits:
        return output
    heads = _edit_stage("outputs", maps.outputs(probabilities, rows), call, branch, queries, start)
    changed = [mask for edit, mask in queries if not edit.observes]
    if not changed:
        return output
    where = torch.stack(changed).any(0)
    return _put_back(output, heads, rows, where, start)


def _observe(call: AttentionCall, branch: Hashable, capture: AttentionCapture, probabilities: Tensor) -> None:
    """Keep what a capture reduces probabilities over every position so far to; those outside a window are 0."""
    layout = call.running.layout
    if call.reach != "own":
        keys = call.keys(branch, capture.keys)
    else:
        keys = layout.positions(branch, capture.keys).to(probabilities.device)
        probabilities = pad(probabilities, (keys.shape[1] - probabilities.shape[-1], 0))
    view = AttentionView(
        call.running, branch, call.layer, keys.device, call.count, call.where(branch, "predicting", "both"), keys
    )
    call.running.gen.observations[capture.key, call.layer] = capture.reduce(probabilities, view)


def _applies_somewhere(edit: AttentionEdit, branch: Hashable, layout: ForwardLayout) -> bool:
    return layout.first(branch, edit.queries, edit.when) < layout.new


def _is_due(capture: AttentionCapture, layout: ForwardLayout) -> bool:
    """Whether positions that a capture observes run here: without a cache, a forward of prompt and tokens has both kinds."""
    if not layout.predicting:
        return False
    if capture.when == "decode":
        return layout.generated > 0
    return capture.when == "both" or not layout.is_decoding


def _edit_stage(
    stage: str,
    tensor: Tensor,
    call: AttentionCall,
    branch: Hashable,
    queries: Sequence[tuple[AttentionEdit, Tensor]],
    start: int,
) -> Tensor:
    """Apply the edits of one stage, each to its own queries, keys and heads."""
    total = tensor.sum(-1, keepdim=True) if stage == "probabilities" and call.maps.has_sinks else 1.0
    for edit, where in queries:
        if edit.stage != stage:
            continue
        keys = call.keys(branch, edit.keys)
        view = AttentionView(call.running, branch, call.layer, keys.device, call.count, where[:, start:], keys)
        edited = operate(edit, tensor, view)
        if edit.observes:
            continue
        if edited.shape != tensor.shape:
            raise InputError(f"An attention edit returned {tuple(edited.shape)} for {tuple(tensor.shape)}.")
        if edit.renormalise and stage == "probabilities":
            edited = edited * (total / edited.sum(-1, keepdim=True).clamp_min(1e-12))
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


def operate(edit: AttentionEdit, tensor: Tensor, view: AttentionView) -> Tensor:
    """Return what an edit's operation makes of scores, probabilities or outputs, before its queries and heads are chosen."""
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
