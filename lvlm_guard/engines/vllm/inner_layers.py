"""What is read and edited inside the layers of a runner's model, step by step."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor

from lvlm_guard.engines.vllm.attention_editing import AttentionEditor, PlannedAttention
from lvlm_guard.engines.vllm.groups import Membership
from lvlm_guard.engines.vllm.layer_editing import LayerEditor, PlannedEdit
from lvlm_guard.engines.vllm.layer_reading import LayerReader
from lvlm_guard.engines.vllm.runner_view import RunnerView
from lvlm_guard.engines.vllm.sampling import GroupSampler
from lvlm_guard.errors import describe_error

BEFORE_MAIN = "A branch that is edited inside the layers ran before main, by whose prompt the edits are planned."


class InnerLayers:
    """The layers of a runner's model, read and edited for the groups of a step.

    Args:
        runner: The model runner, whose model was loaded without compilation.
        sampler: What knows the groups, and lets those fail whose edits do.

    Raises:
        ModelRefused: The decoder's layers, its final norm or its head cannot be found.
    """

    def __init__(self, runner: RunnerView, sampler: GroupSampler) -> None:
        self._runner, self._sampler = runner, sampler
        self._reader = LayerReader(runner.model, lambda: runner.ends)
        self._hidden = LayerEditor(runner.model, self._break_group)
        self._attention = AttentionEditor(runner.model, self._break_group)

    def install(self) -> Callable[[], None]:
        """Put hooks on the layers, those that edit before those that read; returns what takes them off."""
        installed = [part.install() for part in (self._hidden, self._attention, self._reader)]

        def undo() -> None:
            for undo_part in installed:
                undo_part()

        return undo

    def prepare(self, places: Mapping[str, Membership]) -> None:
        """Say what is read and edited in the next forward.

        Args:
            places: Places of the requests of the step that belong to groups; groups whose main is among them are open.
        """
        groups = [self._sampler.find(place.group) for place in places.values()]
        layers = {layer for group in groups if group is not None for layer, _ in group.readouts}
        if any(place.probe is not None for place in places.values()):
            layers |= set(range(1, self._reader.depth + 1))
        self._reader.layers_to_keep = layers
        work = [self._plan_work(name, place) for name, place in places.items() if place.is_edited]
        self._hidden.plan([edit for hidden, _ in work for edit in hidden])
        self._attention.plan([planned for _, attention in work for planned in attention])

    def finish(self) -> None:
        """Look at what the forward did, and edit nothing until the next is prepared."""
        self._hidden.check()
        self._attention.check()

    def read(self, row: int, logits: Tensor, readouts: Collection[tuple[int, bool]]) -> dict[tuple[int, bool], Tensor]:
        """Return logits `[vocab]` of layers at a row of the step, by (layer, whether normed).

        Raises:
            ModelRefused: They cannot be read.
        """
        read: dict[tuple[int, bool], Tensor] = {}
        for normed in {normed for _, normed in readouts}:
            layers = sorted(layer for layer, is_normed in readouts if is_normed == normed)
            of_layers = self._reader.read(row, layers, logits, final_norm=normed)
            read |= {(layer, normed): values for layer, values in zip(layers, of_layers, strict=True)}
        return read

    def read_states(self, row: int, logits: Tensor) -> Tensor:
        """Return what each layer put out at a row of the step `[layers, hidden]`.

        Raises:
            ModelRefused: It cannot be read.
        """
        return self._reader.read_states(row, logits)

    def _plan_work(self, name: str, place: Membership) -> tuple[list[PlannedEdit], list[PlannedAttention]]:
        """Return the edits of hidden states and of attention of one member, at its rows of the step."""
        group = self._sampler.find(place.group)
        if group is None:
            self._sampler.break_group(place.group, BEFORE_MAIN)
            return [], []
        device = self._runner.device
        rows, start = self._runner.find_rows(name)
        prompt = group.find_prompt(place.index, self._runner.find_ids(name))
        hidden = group.plan_edits(place, prompt, rows, start, device)
        placed = group.plan_attention(place, prompt, rows, start, device)
        if not placed:
            return hidden, []
        positions = torch.arange(start, start + rows.stop - rows.start, device=device)
        blocks, size = self._runner.find_blocks(name, int(positions[-1]) + 1)
        return hidden, [PlannedAttention(place.group, placed, rows, positions, blocks, size)]

    def _break_group(self, group: str, error: Exception) -> None:
        self._sampler.break_group(group, describe_error(error))
