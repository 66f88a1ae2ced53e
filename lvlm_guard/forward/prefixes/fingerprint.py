"""What a cache depends on in a model: its structure, weights, adapters and attention, read quickly."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lvlm_guard import anatomy
from lvlm_guard.errors import ModelRefused
from lvlm_guard.forward.installations import Hook, StandIn
from lvlm_guard.forward.interventions.attention import name_of

ADAPTERS = ("active_adapter", "active_adapters", "_active_adapter", "_disable_adapters", "merged_adapters", "scaling")
"""Attributes under which adapters keep what is switched on."""
HOOKS = ("_forward_hooks", "_forward_pre_hooks")
SAMPLES = 4
"""Values of each weight that are looked at, evenly over it, for changes that torch does not count."""


def describe_kind(model: Any) -> tuple[Hashable, ...]:
    """Return what tells one kind of model from another: layers, dtypes, hooks, attention and autocast, weights apart."""
    parts = tuple((type(part), _name_forward(part), *_list_hooks(part)) for part in anatomy.list_parts(model))
    dtypes = tuple((type(weight), weight.dtype) for weight in _list_parameters(model))
    return hash((parts, dtypes)), tuple(_list_attention(model)), _describe_autocast(model)


@torch.no_grad()
def describe_state(model: nn.Module) -> tuple[Hashable, ...]:
    """Return what changes with anything that keys and values depend on, as far as a look at each weight tells."""
    weights = list(_list_weights(model))
    counts = [(weight.data_ptr(), count_changes(weight), weight.shape, weight.device) for weight in weights]
    return (*describe_kind(model), model.training, tuple(counts), _sample(weights), tuple(_list_adapters(model)))


def count_changes(weight: Tensor) -> int:
    """Return how often a tensor was changed in place, as torch counts it; of those made in inference mode it does not."""
    return 0 if weight.is_inference() else weight._version  # noqa: SLF001 - nothing public tells


def _describe_autocast(model: Any) -> tuple[str, torch.dtype] | None:
    """Return under which autocast a model would run now, None where under none."""
    kind = next((weight.device.type for weight in _list_parameters(model)), "cpu")
    is_known = torch.amp.is_autocast_available(kind)
    return (kind, torch.get_autocast_dtype(kind)) if is_known and torch.is_autocast_enabled(kind) else None


def _name_forward(part: nn.Module) -> int:
    forward = vars(part).get("forward")
    is_own = getattr(forward, "__self__", None) is part and getattr(forward, "__func__", None) is type(part).forward
    return 0 if forward is None or is_own or isinstance(forward, StandIn) else id(forward)


def _list_hooks(part: nn.Module) -> Iterator[int]:
    """Yield the identities of hooks, but for ours and those by which transformers collects what layers return."""
    for name in HOOKS:
        for hook in vars(part)[name].values():
            origin = getattr(hook, "__module__", None) or type(hook).__module__
            if not isinstance(hook, Hook) and not str(origin).startswith("transformers."):
                yield id(hook)


def _list_weights(model: nn.Module) -> Iterator[Tensor]:
    """Yield parameters and buffers that belong to a checkpoint."""
    yield from _list_parameters(model)
    for part in anatomy.list_parts(model):
        passing = part._non_persistent_buffers_set  # noqa: SLF001 - torch has no other list of them
        buffers = part._buffers  # noqa: SLF001 - as above
        yield from (buffer for name, buffer in buffers.items() if buffer is not None and name not in passing)


def _list_parameters(model: nn.Module) -> Iterator[Tensor]:
    for part in anatomy.list_parts(model):
        yield from (weight for weight in part._parameters.values() if weight is not None)  # noqa: SLF001 - torch walks all parts again


def _sample(weights: list[Tensor]) -> bytes:
    """Return a few values of every plain weight that is in memory, read at once from each device."""
    samples: dict[torch.device, list[Tensor]] = {}
    for weight in weights:
        if type(weight) in (Tensor, nn.Parameter) and not weight.is_meta and weight.numel():
            values = weight.detach().reshape(-1)
            sample = values[:: max(values.numel() // SAMPLES, 1)][:SAMPLES]
            samples.setdefault(weight.device, []).append(sample.double())
    return b"".join(torch.cat(parts).cpu().numpy().tobytes() for parts in samples.values())


def _list_adapters(model: nn.Module) -> Iterator[str]:
    for part in anatomy.list_parts(model):
        yield from (f"{name}={_as_list(vars(part)[name])!r}" for name in ADAPTERS if name in vars(part))


def _as_list(value: Any) -> Any:
    """Return the name of one adapter as a list of it, which is how another call leaves it."""
    return [value] if isinstance(value, str) else value


def _list_attention(model: Any) -> Iterator[str]:
    try:
        yield from (name_of(config) for config in anatomy.attention_configs(model))
    except ModelRefused:
        return
