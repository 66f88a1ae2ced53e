"""Edits of hidden states inside an engine's model: each applies to the rows of the requests that it is meant for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lvlm_guard import anatomy
from lvlm_guard.arithmetic.hidden_edits import Kernels, apply_edit
from lvlm_guard.engines.vllm.layer_sums import BLOCKS, LayerSums
from lvlm_guard.engines.vllm.member_view import MemberView, find_state
from lvlm_guard.errors import InputError, ModelRefused
from lvlm_guard.forward.installations import hook_with_kwargs
from lvlm_guard.strategy.edits import HiddenEdit, layer_range
from lvlm_guard.strategy.generation import Generation

NOT_REACHED = (
    "A step of the engine did not run the {site} of layer {layer} where hooks see it, so it cannot be edited in vLLM."
)
Place = tuple[int, str]
"""Index of a layer, and a site in it."""


@dataclass(frozen=True, eq=False)
class PlannedEdit:
    """An edit of one request in one step.

    Args:
        group: The group that fails where the edit does.
        edit: The edit.
        gen: The group's generation.
        kernels: What was found before for the group's edits.
        rows: The request's rows in the step.
        applies: At which of them the edit applies, bool `[1, rows]`, on the device.
        image: Which of them are parts of an image, likewise.
    """

    group: str
    edit: HiddenEdit
    gen: Generation
    kernels: Kernels
    rows: slice
    applies: Tensor
    image: Tensor


class LayerEditor:
    """Hooks on the layers of an engine's model, which edit hidden states `[tokens, hidden]` of a step.

    Args:
        model: The model of a runner, without compilation.
        fail: Called with a group and an error that an edit of it raised.

    Raises:
        ModelRefused: The decoder's layers cannot be found.
    """

    def __init__(self, model: nn.Module, fail: Callable[[str, Exception], None]) -> None:
        self._layers = anatomy.decoder_layers(find_language_model(model))
        self._fail = fail
        self._planned: Mapping[Place, Sequence[PlannedEdit]] = {}
        self._reached: set[Place] = set()
        self._sums = LayerSums(self._layers)

    def install(self) -> Callable[[], None]:
        """Put hooks on the layers and their blocks; returns what takes them off."""
        hooks = [hook_with_kwargs(self._layers[0], self._edit_embeddings, before=True)]
        for index, layer in enumerate(self._layers):
            for site in (*BLOCKS, "residual"):
                part = layer if site == "residual" else anatomy.find_part(layer, site)
                if part is not None:
                    hooks.append(part.register_forward_hook(self._edit_output((index, site))))
        undo_sums = self._sums.install()

        def undo() -> None:
            undo_sums()
            for hook in hooks:
                hook.remove()

        return undo

    def plan(self, edits: Iterable[PlannedEdit]) -> None:
        """Say which edits apply in the next forward, in the order of the stacks.

        Groups whose edits cannot be applied fail here: a layer outside the model, a block that it does not have.
        """
        by_place: dict[Place, list[PlannedEdit]] = {}
        for planned in edits:
            for place in self._find_places(planned):
                by_place.setdefault(place, []).append(planned)
        self._planned, self._reached = by_place, set()
        self._sums.watch({index for index, site in by_place if site in BLOCKS})

    def check(self) -> None:
        """Let groups fail whose edits the forward did not come to, or not in a layer that adds its blocks to the residual stream."""
        refused = self._sums.check()
        for place, edits in self._planned.items():
            error = self._find_fault(place, refused)
            for planned in edits if error is not None else ():
                self._fail(planned.group, error)
        self._planned = {}

    def _find_fault(self, place: Place, refused: Mapping[int, ModelRefused]) -> Any:
        """Return why edits at a place are worth nothing, None where they apply."""
        layer, site = place
        if place not in self._reached:
            return ModelRefused(NOT_REACHED.format(site=site, layer=layer))
        return refused.get(layer) if site in BLOCKS else None

    def _find_places(self, planned: PlannedEdit) -> list[Place]:
        """Return where an edit applies; nowhere where it cannot, and its group fails."""
        edit = planned.edit
        if edit.site == "embedding":
            return [(0, "embedding")]
        try:
            indices = layer_range(edit.layers, len(self._layers))
            for index in indices:
                anatomy.layer_part(self._layers[index], edit.site)
        except (InputError, ModelRefused) as error:
            self._fail(planned.group, error)
            return []
        return [(index, edit.site) for index in indices]

    def _edit_embeddings(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Edit what the first layer gets: the first input of it that holds floats."""
        planned = self._planned.get((0, "embedding"))
        if not planned:
            return None
        self._reached.add((0, "embedding"))
        named: dict[Any, Any] = dict(enumerate(args))
        named.update(kwargs)
        name = next(name for name, value in named.items() if isinstance(value, Tensor) and value.is_floating_point())
        named[name] = self._edit(named[name], planned, 0)
        return tuple(named[index] for index in range(len(args))), {key: named[key] for key in kwargs}

    def _edit_output(self, place: Place) -> Callable[..., Any]:
        def edit(_module: Any, _args: Any, output: Any) -> Any:
            planned = self._planned.get(place)
            if not planned:
                return None
            self._reached.add(place)
            if place[1] == "residual" and isinstance(output, tuple) and len(output) == 2:  # noqa: PLR2004 - hidden, residual
                stream = self._edit(output[0] + output[1], planned, place[0])
                return stream, torch.zeros_like(output[1])
            edited = self._edit(find_state(output), planned, place[0])
            return (edited, *output[1:]) if isinstance(output, tuple) else edited

        return edit

    def _edit(self, states: Tensor, planned_edits: Sequence[PlannedEdit], layer: int) -> Tensor:
        """Return hidden states `[..., tokens, hidden]` with the rows of each edit edited; those that fail are left alone."""
        edited = states.clone()
        flat = edited.view(-1, states.shape[-1])
        for planned in planned_edits:
            flat[planned.rows] = self._try_edit(planned, flat[planned.rows], layer)
        return edited

    def _try_edit(self, planned: PlannedEdit, states: Tensor, layer: int) -> Tensor:
        """Return the states `[positions, hidden]` of one request after one edit, as they are where it fails."""
        try:
            return self._apply(planned, states, layer)
        except Exception as error:  # noqa: BLE001 - strategies are foreign code, and other requests run beside them
            self._fail(planned.group, error)
            return states

    def _apply(self, planned: PlannedEdit, states: Tensor, layer: int) -> Tensor:
        view = MemberView(planned.gen, layer, planned.applies, planned.image)
        edited = apply_edit(planned.edit, states[None], view, planned.kernels)[0]
        if edited.shape != states.shape:
            raise InputError(f"A hidden edit returned {tuple(edited.shape)} for {tuple(states.shape)}.")
        return torch.where(planned.applies[0, :, None], edited.to(states.dtype), states)


def find_language_model(model: Any) -> Any:
    """Return the part of an engine's model that decodes."""
    return getattr(model, "get_language_model", lambda: model)()
