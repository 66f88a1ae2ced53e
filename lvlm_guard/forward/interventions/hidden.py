"""Edits of hidden states inside the decoder, as hooks on its layers and their parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lvlm_guard import anatomy
from lvlm_guard.arithmetic.effect_tracking import EffectTracker
from lvlm_guard.errors import InputError
from lvlm_guard.forward.installations import register
from lvlm_guard.forward.interventions.layout import EditPlace
from lvlm_guard.forward.interventions.running import RunningForward, running_forward
from lvlm_guard.forward.interventions.views import HiddenView
from lvlm_guard.strategy.edits import HiddenEdit, layer_range


class HiddenHooks:
    """The hooks of one call's hidden edits.

    Args:
        owner: The interventions of the call; forwards of other calls are left alone.
        layers: The decoder's layers.
        edits: Edits in the order of the stack.
        effects: Where it is noted which edit changed anything.
    """

    def __init__(
        self, owner: object, layers: nn.ModuleList, edits: Sequence[HiddenEdit], effects: EffectTracker
    ) -> None:
        self._owner = owner
        self._layers = layers
        self._edits = edits
        self._effects = effects

    def register(self) -> None:
        """Register every hook, for the owner to remove."""
        for edit in self._edits:
            if edit.site == "embedding":
                register(self._layers[0], self._owner, self._edit_embeddings(edit), before=True, with_kwargs=True)
                continue
            for index in layer_range(edit.layers, len(self._layers)):
                part = anatomy.layer_part(self._layers[index], edit.site)
                register(part, self._owner, self._edit_output(edit, index), with_kwargs=True)

    def _edit_output(self, edit: HiddenEdit, layer: int) -> Callable[..., Any]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            if (active := self._find_active(edit)) is None:
                return None
            source = args[0] if args else kwargs.get("hidden_states")
            if isinstance(output, tuple):
                return (self._edit(output[0], edit, layer, *active, source), *output[1:])
            return self._edit(output, edit, layer, *active, source)

        return hook

    def _edit_embeddings(self, edit: HiddenEdit) -> Callable[..., Any]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if (active := self._find_active(edit)) is None:
                return None
            if args:
                return (self._edit(args[0], edit, 0, *active, args[0]), *args[1:]), kwargs
            hidden = kwargs["hidden_states"]
            return args, {**kwargs, "hidden_states": self._edit(hidden, edit, 0, *active, hidden)}

        return hook

    def _find_active(self, edit: HiddenEdit) -> tuple[RunningForward, EditPlace] | None:
        """The running forward and where an edit applies in it; None in another call's, or where it applies nowhere."""
        running = running_forward()
        place = running.layout.place(edit) if running is not None and running.owner is self._owner else None
        return None if running is None or place is None else (running, place)

    def _edit(
        self, hidden: Tensor, edit: HiddenEdit, layer: int, running: RunningForward, place: EditPlace, source: Any
    ) -> Tensor:
        """Apply an edit to its rows and positions of one layer's output `[rows, positions, hidden]`."""
        before, source = hidden, source if isinstance(source, Tensor) else None
        if place.rows is not None:
            before, source = hidden[place.rows], None if source is None else source[place.rows]
        shape = before.shape
        if shape[-2] != running.layout.new:
            return hidden
        view = HiddenView(running, edit.branch, layer, hidden.device, edit, source)
        edited = edit.edit(before, view)
        if edited.shape != shape:
            raise InputError(f"A hidden edit returned {tuple(edited.shape)} for {tuple(shape)}.")
        edited = edited.to(before)
        if not place.everywhere:
            edited = torch.where(view.positions[..., None], edited, before)
        self._effects.record(id(edit), before, edited)
        if place.rows is None:
            return edited
        output = hidden.clone()
        output[place.rows] = edited
        return output
