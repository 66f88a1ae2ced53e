"""What a model does between its last layer and its logits, found by running it once on random tokens."""

from __future__ import annotations

import contextvars
import inspect
import weakref
from collections.abc import Hashable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lvlm_guard import anatomy
from lvlm_guard.forward.installations import hook_with_kwargs
from lvlm_guard.forward.interventions.compiled import run_uncompiled
from lvlm_guard.forward.interventions.probing import make_inputs
from lvlm_guard.forward.interventions.states import first_input, first_tensor
from lvlm_guard.protocols import Model

TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-4}
HALF_TOLERANCE = 1e-2
"""How far what a part takes may be from what is before it, as a share of its size."""


class TailPart(NamedTuple):
    """One part that states run through before the head.

    Args:
        part: The part.
        is_norm: Whether it leaves states as large as they are, so that they can be read without it.
        factor: What the states are multiplied by before it.
    """

    part: nn.Module
    is_norm: bool
    factor: float = 1.0

    def run(self, states: Tensor) -> Tensor:
        """What the part returns first for states."""
        returned: Tensor = first_tensor(self.part(states if self.factor == 1.0 else states * self.factor))
        return returned


class HeadPath(NamedTuple):
    """The parts between the last layer and the logits.

    Args:
        before: What runs before the head.
        head: What makes logits of states, but for what is done to all logits alike.
        factor: What the states are multiplied by before the head.
    """

    before: tuple[TailPart, ...]
    head: nn.Module
    factor: float = 1.0

    def prepare(self, states: Tensor, *, final_norm: bool) -> Tensor:
        """What the head reads of states `[rows, positions, ...]` of a layer."""
        for part in self.before:
            states = part.run(states) if final_norm or not part.is_norm else states
        return states if self.factor == 1.0 else states * self.factor


@dataclass
class _Run:
    """What a forward was seen to do behind its last layer: parts, what they took first, what they returned first; the logits."""

    last: Any = None
    logits: Any = None
    calls: list[tuple[nn.Module, Any, Any]] = field(default_factory=list)


_observed: weakref.WeakKeyDictionary[Any, tuple[Hashable, HeadPath | None]] = weakref.WeakKeyDictionary()
"""What was observed in each model, as its layers and its head were then."""


def find_path(module: Model) -> HeadPath | None:
    """What a model does behind its last layer, as was observed, or as it names its norm and its head; None if neither."""
    observed = _observed.get(module)
    if observed is not None and observed[0] == _state_of(module):
        return observed[1]
    head, norm = _head_of(module), anatomy.final_norm(module)
    if head is None or norm is None:
        return observe_path(module)
    return HeadPath((TailPart(norm, is_norm=True),), head)


def observe_path(module: Model) -> HeadPath | None:
    """The parts that hand on what the last layer returns, to the head; None where some of it is not done by parts alone.

    Modules are watched that stand beside the layers, and beside what the layers stand in. Kept for each model.
    """
    tail = _run_apart(module)
    path = None if tail is None else _follow(module, tail)
    _observed[module] = _state_of(module), path
    return path


def sample_tail(module: Model) -> tuple[Tensor, Tensor] | None:
    """What the last layer returns on a few random tokens, and the logits that the model makes of it; None if it does not run."""
    tail = _run_apart(module)
    is_known = tail is not None and isinstance(tail.last, Tensor) and isinstance(tail.logits, Tensor)
    return (tail.last, tail.logits) if tail is not None and is_known else None


@torch.no_grad()
def _run_apart(module: Model) -> _Run | None:
    """Run a model on random tokens, unseen by the hooks of a call that runs; None if it does not run."""
    with anatomy.kept_rope(module):
        return contextvars.Context().run(_try_inputs, module)


def _state_of(module: Any) -> Hashable:
    return id(_head_of(module)), tuple(id(layer) for layer in anatomy.decoder_layers(module))


def _head_of(module: Any) -> nn.Module | None:
    try:
        head: nn.Module | None = module.get_output_embeddings()
    except NotImplementedError:
        return None
    return head


def _try_inputs(module: Model) -> _Run | None:
    runs = (_try(module, inputs) for inputs in _make_inputs(module))
    return next((tail for tail in runs if tail is not None), None)


def _try(module: Model, inputs: dict[str, Any]) -> _Run | None:
    try:
        return _run(module, inputs)
    except (TypeError, ValueError, RuntimeError, AttributeError, KeyError, IndexError):
        return None


def _make_inputs(module: Any) -> Iterator[dict[str, Any]]:
    """What the decoder runs on; in a model that encodes as well, beside states that stand for what was encoded."""
    parameters = inspect.signature(module.forward).parameters
    for inputs in make_inputs(module):
        tokens, states = inputs.get("input_ids"), inputs.get("inputs_embeds")
        if "decoder_input_ids" in parameters and tokens is not None:
            yield {"decoder_input_ids": tokens, "input_ids": tokens}
        if {"decoder_inputs_embeds", "encoder_outputs"} <= set(parameters) and states is not None:
            yield {"decoder_inputs_embeds": states, "encoder_outputs": (states,)}
        yield {name: value for name, value in inputs.items() if name in parameters}


def _run(module: Any, inputs: dict[str, Any]) -> _Run:
    layers, tail = anatomy.decoder_layers(module), _Run()

    def start(_: nn.Module, __: Any, output: Any) -> None:
        tail.last, tail.calls = first_tensor(output), []

    def note(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if tail.last is not None:
            tail.calls.append((part, first_input(args, kwargs), first_tensor(output)))

    with ExitStack() as undo, run_uncompiled():
        undo.callback(layers[-1].register_forward_hook(start).remove)
        for part in _list_beside(module, layers):
            undo.callback(hook_with_kwargs(part, note).remove)
        tail.logits = getattr(module(**inputs), "logits", None)
    return tail


def _list_beside(module: nn.Module, layers: nn.ModuleList) -> list[nn.Module]:
    """Children of what the layers lie in, without those that hold them."""
    name = next(name for name, part in module.named_modules() if part is layers)
    places = name.split(".")
    holders = [module.get_submodule(".".join(places[:depth])) for depth in range(len(places))]
    inside = {id(part) for part in (*holders, layers)}
    return [child for holder in holders for child in holder.children() if id(child) not in inside]


def _follow(module: Any, tail: _Run) -> HeadPath | None:
    """Follow what the last layer returned through the parts that took it, up to the head."""
    head, states, parts = _head_of(module), tail.last, []
    for part, part_input, returned in tail.calls:
        factor = _compare(part_input, states)
        if factor is None or not isinstance(returned, Tensor):
            continue
        parts.append(TailPart(part, returned.shape[2:] == part_input.shape[2:], factor))
        states = returned
        if head is not None and any(inner is head for inner in part.modules()):
            break
    else:
        if head is not None or not parts:
            return None
    return HeadPath(tuple(parts[:-1]), parts[-1].part, parts[-1].factor)


def _compare(part_input: Any, states: Any) -> float | None:
    """What the states before a part, or the last positions of them, were multiplied by for it; None where it took others."""
    if not isinstance(part_input, Tensor) or not isinstance(states, Tensor) or part_input.ndim < 3:  # noqa: PLR2004
        return None
    before = states[:, -part_input.shape[1] :].double()
    if part_input.shape != before.shape:
        return None
    factor = float((part_input * before).sum() / before.square().sum())
    error = float((part_input - factor * before).abs().max() / part_input.abs().max())
    tolerance = TOLERANCES.get(part_input.dtype, HALF_TOLERANCE)
    if not error <= tolerance:
        return None
    return 1.0 if abs(factor - 1.0) <= tolerance else factor
