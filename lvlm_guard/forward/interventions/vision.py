"""Edits of hidden states in the vision tower, which know whose image is being encoded."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lvlm_guard import anatomy
from lvlm_guard.arithmetic.effect_tracking import EffectTracker
from lvlm_guard.arithmetic.hidden_edits import apply_edit
from lvlm_guard.errors import InputError, ModelRefused
from lvlm_guard.forward.installations import hooked, register
from lvlm_guard.forward.interventions.compiled import run_uncompiled
from lvlm_guard.forward.interventions.running import running_forward
from lvlm_guard.forward.interventions.states import first_input, first_tensor, replace_first
from lvlm_guard.protocols import Model
from lvlm_guard.strategy.edits import HiddenEdit, layer_range
from lvlm_guard.strategy.generation import Generation

_encoding: ContextVar[tuple[Generation, Hashable] | None] = ContextVar("lvlm_guard_encoding", default=None)


@dataclass(frozen=True)
class VisionView:
    """The part of `View` that exists in a vision tower."""

    gen: Generation
    layer: int
    input: Tensor | None


@contextmanager
def encoding(gen: Generation, key: Hashable) -> Iterator[None]:
    """Images encoded in this block belong to these rows of this call."""
    token = _encoding.set((gen, key))
    try:
        yield
    finally:
        _encoding.reset(token)


@contextmanager
def installed(
    module: Model, model: Any, edits: Sequence[HiddenEdit], gen: Generation, effects: EffectTracker, *, has_image: bool
) -> Iterator[None]:
    """Hooks on the layers of the vision tower, taken off on the way out; `effects` notes which edit changed anything.

    Args:
        module: The module that decodes.
        model: The model around it, where it may not be all of it: it may hold the tower.
        edits: Edits of the tower in the order of the stack.
        gen: The call.
        effects: Where it is noted.
        has_image: Whether the call brings an image.

    Raises:
        ModelRefused: There is an image, and a layer that is edited did not run on it.
    """
    if not edits:
        yield
        return
    holder = _find_holder(module, model)
    layers, waiting = anatomy.vision_layers(holder), set()
    with _left_as_found(layers), run_uncompiled(), hooked(holder, gen):
        for number, edit in enumerate(edits):
            for index in layer_range(edit.layers, len(layers)):
                part = anatomy.layer_part(layers[index], edit.site)
                waiting.add((number, index))
                reached = functools.partial(waiting.discard, (number, index))
                hook = _edit_output(edit, index, gen, effects, reached, vars(part).get("forward"))
                register(part, gen, hook, with_kwargs=True)
        yield
    if waiting and has_image:
        raise ModelRefused(
            f"Layers {sorted({index for _, index in waiting})} of the vision tower of {type(holder).__name__} did not run on "
            "the image of the rows that were to be edited, so the edits were not applied there. Leave these layers out."
        )


@contextmanager
def _left_as_found(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Take off forwards that a block that raised left on layers: some versions of transformers put them there and take off none."""
    before = [vars(layer).get("forward") for layer in layers]
    try:
        yield
    except BaseException:
        for layer, forward in zip(layers, before, strict=True):
            vars(layer).pop("forward", None)
            if forward is not None:
                vars(layer)["forward"] = forward
        raise


def _find_holder(module: Model, model: Any) -> Any:
    """What holds the vision tower: the module that decodes, else the model around it."""
    if model is None or model is module:
        return module
    try:
        anatomy.vision_layers(module)
    except ModelRefused:
        return model
    return module


def _edit_output(
    edit: HiddenEdit, layer: int, gen: Generation, effects: EffectTracker, reached: Callable[[], None], forward: Any
) -> Callable[..., Any]:
    """A hook that edits; `forward` is what was put in place of the part's own before the call, or None."""

    def hook(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if _branch_of(gen) != edit.branch:
            return None
        reached()
        if not edit.observes and edit.site == "residual" and vars(part).get("forward") is not forward:
            raise ModelRefused(
                f"The output of layer {layer} of the vision tower is kept before it is edited, as some versions of transformers do "
                "it, so the edit would not reach the model. Update transformers, or edit at site 'attention' or 'mlp'."
            )
        source, hidden = first_input(args, kwargs), first_tensor(output)
        if not isinstance(hidden, Tensor):
            raise ModelRefused(
                f"The {edit.site} output of layer {layer} of the vision tower is {type(hidden).__name__}, no tensor, so it "
                "cannot be edited."
            )
        edited = apply_edit(edit, hidden, VisionView(gen, layer, source), {})
        if edit.observes:
            return None
        if edited.shape != hidden.shape:
            raise InputError(f"A hidden edit returned {tuple(edited.shape)} for {tuple(hidden.shape)}.")
        edited = edited.to(hidden)
        effects.record(id(edit), hidden, edited)
        return replace_first(output, edited)

    return hook


def _branch_of(gen: Generation) -> Hashable | None:
    """Whose image is being encoded: by the forward that runs, else by who prepares one; None if not this call's."""
    running = running_forward()
    if running is not None:
        return next(iter(running.layout.prompts)) if running.gen is gen else None
    encoding_for = _encoding.get()
    return encoding_for[1] if encoding_for is not None and encoding_for[0] is gen else None
