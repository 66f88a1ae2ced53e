"""One attention function for every decoder: the model's own wherever nothing is edited, last-row arithmetic elsewhere."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lvlm_guard import anatomy
from lvlm_guard.errors import InputError, ModelRefused
from lvlm_guard.forward.interventions import passes
from lvlm_guard.forward.interventions.passes import AttentionView, Pass
from lvlm_guard.strategy.edits import AttentionCapture, AttentionEdit

NAME = "lvlm_guard"
DELEGATES = ("eager", "sdpa")
_lock = threading.Lock()


@dataclass
class _Switched:
    users: int
    original: str


_switched: dict[int, _Switched] = {}


@contextmanager
def installed(module: nn.Module) -> Iterator[None]:
    """Switch the decoder's attention to `guarded_attention`; switched back when its last user leaves.

    Raises:
        ModelRefused: The attention in use cannot be delegated to.
    """
    configs = anatomy.attention_configs(module)
    if not configs:
        raise ModelRefused(f"{type(module).__name__} does not run its attention through transformers' interface.")
    _acquire(configs)
    try:
        yield
    finally:
        _release(configs)


def _acquire(configs: list[Any]) -> None:
    with _lock:
        for config in configs:
            _check(config)
        for config in configs:
            state = _switched.setdefault(id(config), _Switched(0, config._attn_implementation))  # noqa: SLF001 - the interface's own switch
            state.users += 1
            config._attn_implementation = NAME  # noqa: SLF001 - as above


def _check(config: Any) -> None:
    name = config._attn_implementation  # noqa: SLF001 - as above
    if name != NAME and name not in DELEGATES:
        raise ModelRefused(
            f"Attention edits cannot delegate to {name!r}. Load the model with attn_implementation='sdpa' or 'eager'."
        )


def _release(configs: list[Any]) -> None:
    with _lock:
        for config in configs:
            state = _switched[id(config)]
            state.users -= 1
            if state.users == 0:
                config._attn_implementation = _switched.pop(id(config)).original  # noqa: SLF001 - as above


def guarded_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention as transformers calls it: query `[rows, heads, queries, size]`, keys and values grouped.

    Edited queries are computed again, one block of rows at a time, without the maps of all others.
    """
    options = {"scaling": scaling, "dropout": dropout, **kwargs}
    output, weights = _delegate(module)(module, query, key, value, attention_mask, **options)
    now, layer = passes.current(), getattr(module, "layer_idx", None)
    work = [] if now is None or now.owner is None else now.owner.attention_plan.get(layer, [])
    if now is None or layer is None or not work:
        return output, weights
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    call = _Call(module, query, key, value, attention_mask, scale, kwargs.get("softcap"), now, layer)
    for block in now.prompts:
        mine = [one for one in work if one.branch == block]
        if mine:
            output = _redone(call, block, mine, output)
    return output, weights


def _delegate(module: nn.Module) -> Callable[..., tuple[Tensor, Tensor | None]]:
    state = _switched.get(id(module.config))
    name = "sdpa" if state is None else state.original
    if name == "eager":
        own = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        if own is not None:
            return own
    found: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS["sdpa"]
    return found


@dataclass(frozen=True)
class _Call:
    """The arguments of one attention call and where it happens."""

    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scale: float
    softcap: float | None
    now: Pass
    layer: int

    @property
    def is_cross(self) -> bool:
        return "Cross" in type(self.module).__name__

    def keys(self, block: Any, name: str) -> Tensor:
        """A key set in this layer, bool `[rows, keys]`: sliding layers hold the newest positions only."""
        rows, length = self.now.rows(block), self.key.shape[-2]
        if self.is_cross:
            return self.key.new_full((rows.stop - rows.start, length), name in ("image", "all"), dtype=torch.bool)
        where = self.now.positions(block, name)
        if length > where.shape[1]:
            raise InputError("Attention edits need a cache that grows with the tokens: drop cache_implementation.")
        return where[:, -length:].to(self.key.device)


def _redone(call: _Call, block: Any, work: list[AttentionEdit | AttentionCapture], output: Tensor) -> Tensor:
    """Compute the queries that the work of one block touches again, and put the edited ones into the output."""
    now, rows = call.now, call.now.rows(block)
    edits = [one for one in work if isinstance(one, AttentionEdit)]
    queries = [(one, now.edited(block, one.queries, one.when).to(output.device)) for one in edits]
    probed = [one for one in work if isinstance(one, AttentionCapture) and _is_due(one, now)]
    masks = [where for _, where in queries]
    starts = [now.first(block, edit.queries, edit.when) for edit in edits]
    start = min([*starts, now.new - now.predicting if probed else now.new])
    if start == now.new:
        return output
    scores = _scores(call, rows, start)
    scores = _staged("scores", scores, call, block, queries, start)
    probabilities = _masked(scores, call, rows, start).softmax(-1, dtype=torch.float32)
    probabilities = _staged("probabilities", probabilities, call, block, queries, start)
    for probe in probed:
        _observe(call, block, probe, probabilities[:, :, -now.predicting :])
    if not edits:
        return output
    values = _repeated(call.value[rows], call.query.shape[1])
    heads = (probabilities.to(values.dtype) @ values).float()
    heads = _staged("outputs", heads, call, block, queries, start)
    return _placed(output, heads, rows, torch.stack(masks).any(0), start)


def _observe(call: _Call, block: Any, probe: AttentionCapture, probabilities: Tensor) -> None:
    """Keep what a probe makes of probabilities over every position so far; those outside a window are 0."""
    now = call.now
    if call.is_cross:
        keys = call.keys(block, probe.keys)
    else:
        keys = now.positions(block, probe.keys).to(probabilities.device)
        probabilities = pad(probabilities, (keys.shape[1] - probabilities.shape[-1], 0))
    queries = now.edited(block, "predicting", "both").to(keys.device)
    view = AttentionView(now, block, call.layer, keys.device, queries, keys)
    now.gen.observations[probe.key, call.layer] = probe.reduce(probabilities, view)


def _is_due(probe: AttentionCapture, now: Pass) -> bool:
    prefilling = now.new > now.generated
    return probe.when == "both" or (probe.when == "prefill") == prefilling


def _scores(call: _Call, rows: slice, start: int) -> Tensor:
    """Scaled scores before mask and softmax, fp32 `[rows, heads, queries, keys]`."""
    query = call.query[rows, :, start:]
    scores = (query @ _repeated(call.key[rows], query.shape[1]).transpose(-1, -2)).float() * call.scale
    return scores if call.softcap is None else torch.tanh(scores / call.softcap) * call.softcap


def _repeated(grouped: Tensor, heads: int) -> Tensor:
    """Grouped keys or values `[rows, groups, keys, size]` for every head."""
    return grouped.repeat_interleave(heads // grouped.shape[1], dim=1)


def _masked(scores: Tensor, call: _Call, rows: slice, start: int) -> Tensor:
    if call.mask is not None:
        mask = call.mask[rows] if call.mask.shape[0] > 1 else call.mask
        mask = mask[:, :, start:, : scores.shape[-1]]
        return scores.masked_fill(~mask, torch.finfo(scores.dtype).min) if mask.dtype == torch.bool else scores + mask
    queries, keys = scores.shape[-2:]
    if call.is_cross or queries == 1 or not getattr(call.module, "is_causal", True):
        return scores
    hidden = torch.ones(queries, keys, dtype=torch.bool, device=scores.device).triu(keys - queries + 1)
    return scores.masked_fill(hidden, torch.finfo(scores.dtype).min)


def _staged(
    stage: str, tensor: Tensor, call: _Call, block: Any, queries: list[tuple[AttentionEdit, Tensor]], start: int
) -> Tensor:
    """Apply the edits of one stage, each to its own queries, keys and heads."""
    for edit, where in queries:
        if edit.stage != stage:
            continue
        keys = call.keys(block, edit.keys)
        view = AttentionView(call.now, block, call.layer, keys.device, where[:, start:], keys)
        edited = _operated(edit, tensor, view)
        if edited.shape != tensor.shape:
            raise InputError(f"An attention edit returned {tuple(edited.shape)} for {tuple(tensor.shape)}.")
        if edit.renormalise and stage == "probabilities":
            edited = edited / edited.sum(-1, keepdim=True).clamp_min(1e-12)
        kept = where[:, None, start:, None]
        if edit.heads is not None:
            chosen = torch.zeros(tensor.shape[1], dtype=torch.bool, device=tensor.device)
            chosen[list(edit.heads)] = True
            kept = kept & chosen[None, :, None, None]
        kept_or_not = torch.where(kept, edited, tensor)
        call.now.owner.touched.note(id(edit), tensor, kept_or_not)
        tensor = kept_or_not
    return tensor


def _operated(edit: AttentionEdit, tensor: Tensor, view: AttentionView) -> Tensor:
    if callable(edit.operation):
        return edit.operation(tensor, view)
    if edit.operation == "gate_heads":
        return tensor * edit.amount
    changed = {
        "add": lambda: tensor + edit.amount,
        "scale": lambda: tensor * edit.amount,
        "add_abs": lambda: tensor + edit.amount * tensor.abs(),
        "mask": lambda: torch.full_like(tensor, torch.finfo(tensor.dtype).min),
        "scale_probabilities": lambda: tensor * edit.amount,
    }[edit.operation]()
    return torch.where(view.keys[:, None, None, :], changed, tensor)


def _placed(output: Tensor, heads: Tensor, rows: slice, where: Tensor, start: int) -> Tensor:
    """Edited head outputs `[rows, heads, queries, size]` into `[all rows, all queries, heads, size]`."""
    changed = output.clone()
    fresh = heads.transpose(1, 2).to(output.dtype)
    changed[rows, start:] = torch.where(where[:, start:, None, None], fresh, output[rows, start:])
    return changed


AttentionInterface.register(NAME, guarded_attention)
AttentionMaskInterface.register(NAME, eager_mask)
