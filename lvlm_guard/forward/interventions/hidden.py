"""Edits of hidden states inside the decoder, as hooks on its layers and their parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lvlm_guard.arithmetic.effect_tracking import EffectTracker
from lvlm_guard.arithmetic.hidden_edits import Kernels, apply_edit
from lvlm_guard.errors import InputError
from lvlm_guard.forward.installations import register
from lvlm_guard.forward.interventions.layout import EditPlace
from lvlm_guard.forward.interventions.running import RunningForward, running_forward
from lvlm_guard.forward.interventions.sites import BLOCKS, Site, find_site
from lvlm_guard.forward.interventions.states import align, align_or_refuse, first_input, first_tensor, replace_first
from lvlm_guard.forward.interventions.views import HiddenView
from lvlm_guard.protocols import Model
from lvlm_guard.strategy.edits import HiddenEdit, layer_range


class HiddenHooks:
    """The hooks of one call's hidden edits.

    Args:
        owner: The interventions of the call; forwards of other calls are left alone.
        module: The module that decodes.
        layers: The decoder's layers.
        edits: Edits in the order of the stack.
        effects: Where it is noted which edit changed anything.

    Raises:
        ModelRefused: A layer has no block of the kind an edit names, or does not simply add it to the residual stream.
    """

    def __init__(
        self, owner: object, module: Model, layers: nn.ModuleList, edits: Sequence[HiddenEdit], effects: EffectTracker
    ) -> None:
        self._owner = owner
        self._layers = layers
        self._edits = edits
        self._sites = {
            (index, edit.site): find_site(module, layers[index], edit.site)
            for edit in edits
            if edit.site in BLOCKS
            for index in layer_range(edit.layers, len(layers))
        }
        self._effects = effects
        self._kernels: Kernels = {}
        self._places = [
            frozenset((number, index) for index in self._indices(edit)) for number, edit in enumerate(edits)
        ]

    def find_missed(self, running: RunningForward) -> set[int]:
        """Layers that a forward which has run did not come to, where it should have applied an edit."""
        return {
            layer
            for edit, places in zip(self._edits, self._places, strict=True)
            if not places <= running.applied and running.layout.place(edit) is not None
            for _, layer in places - running.applied
        }

    def _indices(self, edit: HiddenEdit) -> range:
        return range(1) if edit.site == "embedding" else layer_range(edit.layers, len(self._layers))

    def register(self) -> None:
        """Register every hook, for the owner to remove."""
        for place, behind_norm in self._sites.items():
            if behind_norm.part is not behind_norm.block:
                register(behind_norm.block, self._owner, self._keep_input(place), before=True, with_kwargs=True)
        for number, edit in enumerate(self._edits):
            if edit.site == "embedding":
                register(self._layers[0], self._owner, self._edit_embeddings(number), before=True, with_kwargs=True)
                continue
            for index in self._indices(edit):
                site = self._sites.get((index, edit.site))
                part = self._layers[index] if site is None else site.part
                register(part, self._owner, self._edit_output(number, index, site), with_kwargs=True)

    def _keep_input(self, place: tuple[int, str]) -> Callable[..., None]:
        """Keep what a block takes for edits of what a norm behind it returns."""

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            running = running_forward()
            if running is not None and running.owner is self._owner:
                running.captures.block_inputs[place] = first_input(args, kwargs)

        return hook

    def _edit_output(self, number: int, layer: int, site: Site | None) -> Callable[..., Any]:
        edit, factor = self._edits[number], 1.0 if site is None else site.factor

        def hook(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            if (active := self._find_active(edit)) is None:
                return None
            active[0].mark(number, layer)
            source = first_input(args, kwargs)
            if site is not None and part is not site.block:
                source = active[0].captures.block_inputs[layer, edit.site]
            hidden = align_or_refuse(first_tensor(output), active[0].layout, f"The {edit.site} output of layer {layer}")
            edited = self._edit_streams(hidden * factor if factor != 1.0 else hidden, source, edit, layer, *active)
            if edit.observes:
                return None
            edited = edited / factor if factor != 1.0 else edited
            return replace_first(output, edited.reshape(first_tensor(output).shape))

        return hook

    def _edit_embeddings(self, number: int) -> Callable[..., Any]:
        edit = self._edits[number]

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if (active := self._find_active(edit)) is None:
                return None
            active[0].mark(number, 0)
            hidden = align_or_refuse(first_input(args, kwargs), active[0].layout, "The input of layer 0")
            edited = self._edit_streams(hidden, hidden, edit, 0, *active)
            if edit.observes:
                return None
            edited = edited.reshape(first_input(args, kwargs).shape)
            return ((edited, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": edited})

        return hook

    def _find_active(self, edit: HiddenEdit) -> tuple[RunningForward, EditPlace] | None:
        """The running forward and where an edit applies in it; None in another call's, or where it applies nowhere."""
        running = running_forward()
        place = running.layout.place(edit) if running is not None and running.owner is self._owner else None
        return None if running is None or place is None else (running, place)

    def _edit_streams(
        self, hidden: Tensor, source: Any, edit: HiddenEdit, layer: int, running: RunningForward, place: EditPlace
    ) -> Tensor:
        """Apply an edit to one layer's output; to each of several residual streams `[rows, positions, streams, hidden]` alone."""
        if hidden.ndim == 3:  # noqa: PLR2004 - rows, positions, hidden
            return self._edit(hidden, source, edit, layer, running, place)
        is_alike = isinstance(source, Tensor) and source.shape == hidden.shape
        sources = source.unbind(2) if is_alike else [None] * hidden.shape[2]
        streams = zip(hidden.unbind(2), sources, strict=True)
        return torch.stack([self._edit(*stream, edit, layer, running, place) for stream in streams], dim=2)

    def _edit(
        self, hidden: Tensor, source: Any, edit: HiddenEdit, layer: int, running: RunningForward, place: EditPlace
    ) -> Tensor:
        """Apply an edit to its rows and positions of one layer's output `[rows, positions, hidden]`.

        Raises:
            InputError: The edit returns another shape.
        """
        before, source = hidden, align(source, running.layout)
        if place.rows is not None:
            before, source = hidden[place.rows], None if source is None else source[place.rows]
        shape = before.shape
        view = HiddenView(running, edit.branch, layer, hidden.device, hidden.shape[1], edit, source)
        if hidden.shape[1] < running.layout.new and not bool(view.positions.any()):
            return hidden  # this layer runs none of the edit's positions, so that nothing depends on them from here on
        edited = apply_edit(edit, before, view, self._kernels)
        if edit.observes:
            return hidden
        if edited.shape != shape:
            raise InputError(f"A hidden edit returned {tuple(edited.shape)} for {tuple(shape)}.")
        edited = edited.to(before)
        if not place.everywhere:
            edited = torch.where(view.positions[..., None], edited, before)
        self._effects.record(id(edit), before, edited)
        if place.rows is None:
            return edited
        return torch.cat([hidden[: place.rows.start], edited, hidden[place.rows.stop :]])
