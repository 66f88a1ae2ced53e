"""Edits of attention inside an engine's model: edited rows are computed again from the paged cache, and replace the engine's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lvlm_guard import anatomy
from lvlm_guard.engines.vllm.attention_rows import AttentionRows, PlacedEdit
from lvlm_guard.engines.vllm.cache_reading import LAYOUTS
from lvlm_guard.engines.vllm.layer_editing import NOT_REACHED, find_language_model
from lvlm_guard.errors import InputError, ModelRefused
from lvlm_guard.strategy.edits import layer_range

TOLERANCES = {torch.float32: 1e-3}
HALF_TOLERANCE = 3e-2
MARKS = ("kv_cache", "num_heads", "num_kv_heads", "head_size", "impl")
"""What an engine's attention, which reads and writes its cache, has."""


@dataclass(frozen=True, eq=False)
class PlannedAttention:
    """Attention edits of one request in one step.

    Args:
        group: The group that fails where an edit does.
        edits: The edits, in the order of the stack.
        rows: The request's rows in the step.
        positions: Their positions, int64 `[rows]`, on the device.
        blocks: Ids of the request's cache blocks, int64, on the device.
        block_size: Positions of a block.
    """

    group: str
    edits: Sequence[PlacedEdit]
    rows: slice
    positions: Tensor
    blocks: Tensor
    block_size: int


class AttentionEditor:
    """Hooks on the attention of an engine's model.

    A row is replaced where what is computed without the edits equals what the engine computed; anything else, a window, a cap on scores,
    a cache in another layout, is refused.

    Args:
        model: The model of a runner, without compilation.
        fail: Called with a group and an error that an edit of it raised.

    Raises:
        ModelRefused: The decoder's layers cannot be found.
    """

    def __init__(self, model: nn.Module, fail: Callable[[str, Exception], None]) -> None:
        layers = anatomy.decoder_layers(find_language_model(model))
        self._attention = [_find_attention(layer) for layer in layers]
        self._fail = fail
        self._planned: Mapping[int, Sequence[PlannedAttention]] = {}
        self._reached: set[int] = set()
        self._layout = ""

    def install(self) -> Callable[[], None]:
        """Put hooks on every layer's attention; returns what takes them off."""
        hooks = [
            module.register_forward_hook(self._edit_output(index))
            for index, module in enumerate(self._attention)
            if module is not None
        ]

        def undo() -> None:
            for hook in hooks:
                hook.remove()

        return undo

    def plan(self, work: Iterable[PlannedAttention]) -> None:
        """Say which edits apply in the next forward; groups fail whose edits no layer can have."""
        by_layer: dict[int, list[PlannedAttention]] = {}
        for planned in work:
            for layer, edits in self._sort_edits(planned).items():
                of_layer = PlannedAttention(
                    planned.group, edits, planned.rows, planned.positions, planned.blocks, planned.block_size
                )
                by_layer.setdefault(layer, []).append(of_layer)
        self._planned, self._reached = by_layer, set()

    def check(self) -> None:
        """Let groups fail whose edits the forward did not come to; nothing is edited until the next is planned."""
        missed = [(layer, planned) for layer, work in self._planned.items() for planned in work]
        for layer, planned in missed:
            if layer not in self._reached:
                self._fail(planned.group, ModelRefused(NOT_REACHED.format(site="attention", layer=layer)))
        self._planned = {}

    def _sort_edits(self, planned: PlannedAttention) -> dict[int, list[PlacedEdit]]:
        """Return the edits by layer; none where one of them cannot be applied."""
        by_layer: dict[int, list[PlacedEdit]] = {}
        try:
            for placed in planned.edits:
                for layer in layer_range(placed.edit.layers, len(self._attention)):
                    self._check(layer, placed)
                    by_layer.setdefault(layer, []).append(placed)
        except (InputError, ModelRefused) as error:
            self._fail(planned.group, error)
            return {}
        return by_layer

    def _check(self, layer: int, placed: PlacedEdit) -> None:
        module = self._attention[layer]
        if module is None:
            raise ModelRefused(f"Layer {layer} of this model in vLLM shows no attention, so it cannot be edited.")
        if any(head >= module.num_heads for head in placed.edit.heads or ()):
            raise InputError(f"Heads {placed.edit.heads} lie outside attention of {module.num_heads} heads.")

    def _edit_output(self, layer: int) -> Callable[..., Any]:
        def edit(module: Any, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            work = self._planned.get(layer)
            if not work:
                return None
            self._reached.add(layer)
            edited = output.clone()
            query, rows = args[0].view(-1, module.num_heads, module.head_size), edited.view(len(output), -1)
            for planned in work:
                rows[planned.rows] = self._try_edit(planned, module, query[planned.rows], rows[planned.rows])
            return edited

        return edit

    def _try_edit(self, planned: PlannedAttention, module: Any, query: Tensor, output: Tensor) -> Tensor:
        """Return the output `[rows, heads x size]` of one request, as it is where its edits fail."""
        try:
            return self._apply(planned, module, query, output)
        except Exception as error:  # noqa: BLE001 - other requests run beside it
            self._fail(planned.group, error)
            return output

    def _apply(self, planned: PlannedAttention, module: Any, query: Tensor, output: Tensor) -> Tensor:
        picked = torch.stack([placed.queries for placed in planned.edits]).any(0)
        edits = [PlacedEdit(placed.edit, placed.queries[picked], placed.keys) for placed in planned.edits]
        rows = AttentionRows(query[picked], planned.positions[picked], float(module.impl.scale))
        computed = output[picked].unflatten(-1, (module.num_heads, -1)).float()
        edited = self._compute(rows, edits, planned, module, computed).flatten(1).to(output.dtype)
        replaced = output.clone()
        replaced[picked] = edited
        return replaced

    def _compute(
        self, rows: AttentionRows, edits: Sequence[PlacedEdit], planned: PlannedAttention, module: Any, computed: Tensor
    ) -> Tensor:
        """Return edited outputs in the layout that gives the engine's own where nothing is edited.

        Raises:
            ModelRefused: None does.
        """
        count, errors = int(planned.positions[-1]) + 1, {}
        for name in sorted(LAYOUTS, key=lambda name: name != self._layout):  # the one that was right before comes first
            try:
                pages = LAYOUTS[name](module.kv_cache, planned.blocks, planned.block_size)
                key, value = (tensor[:count] for tensor in pages)
                plain, edited = rows.compute(key, value, edits)
            except (RuntimeError, IndexError, ValueError) as error:  # shapes of another layout
                errors[name] = f"{type(error).__name__}"
                continue
            distance = float((plain - computed).abs().max() / computed.abs().max().clamp_min(1e-6))
            if distance <= TOLERANCES.get(module.kv_cache.dtype, HALF_TOLERANCE):
                self._layout = name
                return edited
            errors[name] = f"{distance:.3g} off"
        raise ModelRefused(
            f"Attention computed from the cache of {type(module.impl).__name__} differs from the engine's own ({errors}), so it "
            "cannot be edited in vLLM. Run the strategy in the process, Guard(model, processor)."
        )


def _find_attention(layer: nn.Module) -> Any:
    """Return the only module of a layer that reads the engine's cache, None where it has none or several."""
    attending = [module for module in layer.modules() if all(hasattr(module, mark) for mark in MARKS)]
    return attending[0] if len(attending) == 1 else None
