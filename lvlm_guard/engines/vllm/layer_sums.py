"""Whether layers of an engine's model add what their blocks return to the residual stream, looked at in real steps."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

from lvlm_guard import anatomy
from lvlm_guard.engines.vllm.member_view import find_state
from lvlm_guard.errors import ModelRefused
from lvlm_guard.forward.installations import hook_with_kwargs

TOLERANCES = {torch.float32: 1e-3, torch.float64: 1e-3}
HALF_TOLERANCE = 3e-2
BLOCKS = ("attention", "mlp")


class LayerSums:
    """Looks at each layer in the first step in which a block of it is edited.

    A layer passes where its output is its input plus what its blocks return, edits included: then an edit of a block's output is one
    of what the block adds. Norms and factors behind a block do not pass.

    Args:
        layers: The decoder's layers.
    """

    def __init__(self, layers: nn.ModuleList) -> None:
        self._layers = layers
        self._passed: set[int] = set()
        self._watched: Collection[int] = ()
        self._states: dict[int, dict[str, Tensor]] = {}

    def install(self) -> Callable[[], None]:
        """Put hooks on layers and blocks, behind those that edit; returns what takes them off."""
        hooks = []
        for index, layer in enumerate(self._layers):
            hooks.append(hook_with_kwargs(layer, self._keep_input(index), before=True))
            hooks.append(layer.register_forward_hook(self._keep_output(index, "output")))
            parts = {site: anatomy.find_part(layer, site) for site in BLOCKS}
            hooks += [
                part.register_forward_hook(self._keep_output(index, site))
                for site, part in parts.items()
                if part is not None
            ]

        def undo() -> None:
            for hook in hooks:
                hook.remove()

        return undo

    def watch(self, layers: Collection[int]) -> None:
        """Look at those of these layers in the next forward that have not passed yet."""
        self._watched = {layer for layer in layers if layer not in self._passed}
        self._states = {}

    def check(self) -> dict[int, ModelRefused]:
        """Return the watched layers that do not pass, with why."""
        refused = {}
        for index in sorted(self._watched):
            error = self._measure(self._states.get(index, {}))
            if error is None:
                self._passed.add(index)
            else:
                refused[index] = ModelRefused(
                    f"Layer {index}, {type(self._layers[index]).__name__}, {error}, so what its blocks add cannot be edited in vLLM. "
                    "Choose a strategy that works on logits."
                )
        self._watched, self._states = (), {}
        return refused

    def _measure(self, states: dict[str, Tensor]) -> str | None:
        """Return what is wrong with a layer, None where it is its input plus its blocks."""
        if {"input", "output", *BLOCKS} - states.keys():
            return "did not run all of its blocks where hooks can see them"
        added = states["attention"] + states["mlp"]
        before, after = states["input"].float(), states["output"].float()
        size = float(added.float().norm())
        error = float((before + added - after).norm())
        rounding = torch.finfo(states["output"].dtype).eps * float(before.norm() + after.norm())
        is_sum = error <= TOLERANCES.get(states["output"].dtype, HALF_TOLERANCE) * size + rounding
        return None if is_sum else f"is off the sum of its blocks by {error / max(size, 1e-12):.3g} of it"

    def _keep_input(self, index: int) -> Callable[..., None]:
        def keep(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if index in self._watched:
                floats = [
                    value
                    for value in (*args, *kwargs.values())
                    if isinstance(value, Tensor) and value.is_floating_point()
                ]
                self._states[index] = {"input": _add(floats[:2])}

        return keep

    def _keep_output(self, index: int, name: str) -> Callable[..., None]:
        def keep(_module: Any, _args: Any, output: Any) -> None:
            if index in self._watched and index in self._states:
                parts = list(output) if name == "output" and isinstance(output, tuple) else [find_state(output)]
                self._states[index][name] = _add(parts)

        return keep


def _add(parts: list[Any]) -> Tensor:
    """Return the sum of the hidden states and the residual of the same shape, as new memory: engines overwrite both."""
    first = parts[0]
    same = [part for part in parts[1:] if isinstance(part, Tensor) and part.shape == first.shape]
    return first + same[0] if same else first.clone()
