"""Everything that is done inside the layers during one guarded call, installed and undone together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

from torch import Tensor, nn

from lvlm_guard import anatomy
from lvlm_guard.arithmetic.effect_tracking import EffectTracker
from lvlm_guard.errors import InputError, ModelRefused
from lvlm_guard.forward.installations import hooked
from lvlm_guard.forward.interventions import attention
from lvlm_guard.forward.interventions.compiled import run_uncompiled
from lvlm_guard.forward.interventions.hidden import HiddenHooks
from lvlm_guard.forward.interventions.readouts import Lens, ReadoutHooks
from lvlm_guard.forward.interventions.running import RunningForward
from lvlm_guard.protocols import Model
from lvlm_guard.strategy.edits import AttentionCapture, AttentionEdit, HiddenEdit, Readout, layer_range, readout_layers


class LayerInterventions:
    """Edits, captures and readouts of one call, resolved for one decoder.

    Args:
        module: The module that decodes.
        attention_edits: Attention edits in the order of the stack.
        attention_captures: Observations of attention.
        hidden_edits: Edits of the decoder's hidden states.
        readouts: Layers whose logits are read.

    Raises:
        InputError: A layer or head outside the model.
        ModelRefused: The model has no part of the kind an edit names.
    """

    def __init__(
        self,
        module: Model,
        attention_edits: Sequence[AttentionEdit] = (),
        attention_captures: Sequence[AttentionCapture] = (),
        hidden_edits: Sequence[HiddenEdit] = (),
        readouts: Sequence[Readout] = (),
    ) -> None:
        self.effects = EffectTracker()
        self.attention_plan: dict[int, list[AttentionEdit | AttentionCapture]] = {}
        self.is_empty = not (attention_edits or attention_captures or hidden_edits or readouts)
        self._module = module
        self._hidden: HiddenHooks | None = None
        self._readouts: ReadoutHooks | None = None
        if not self.is_empty:
            layers = anatomy.decoder_layers(module)
            self.attention_plan = plan_attention([*attention_edits, *attention_captures], layers)
            _check_heads(attention_edits, layers)
            self._hidden = HiddenHooks(self, module, layers, hidden_edits, self.effects)
            self._readouts = self._hook_readouts(layers, readouts)

    def _hook_readouts(self, layers: nn.ModuleList, readouts: Sequence[Readout]) -> ReadoutHooks | None:
        indices = frozenset(index for readout in readouts for index in readout_layers(readout, len(layers)))
        return ReadoutHooks(self, Lens(self._module, indices), layers, readouts) if indices else None

    def read(self, running: RunningForward, logits: Tensor, keep: int) -> dict[tuple[int, bool], Tensor]:
        """Logits `[rows, keep, vocab]` of every layer asked for, by (layer, whether normed), after main's forward."""
        return {} if self._readouts is None else self._readouts.read(running, logits, keep)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Put hooks and attention in place; all of it is undone on the way out."""
        if self.is_empty:
            yield
            return
        attended = attention.installed(self._module) if self.attention_plan else nullcontext()
        with run_uncompiled(), attended, hooked(self._module, self):
            for hooks in (self._hidden, self._readouts):
                if hooks is not None:
                    hooks.register()
            yield


def plan_attention(
    work: Sequence[AttentionEdit | AttentionCapture], layers: nn.ModuleList
) -> dict[int, list[AttentionEdit | AttentionCapture]]:
    """Edits and captures of every layer that has any.

    Raises:
        ModelRefused: A layer mixes tokens without attention scores, where an edit would silently do nothing.
    """
    plan: dict[int, list[AttentionEdit | AttentionCapture]] = {}
    for item in work:
        for layer in layer_range(item.layers, len(layers)):
            plan.setdefault(layer, []).append(item)
    blind = [layer for layer in plan if not anatomy.attends(layers[layer])]
    if blind:
        raise ModelRefused(
            f"Layers {blind} of this model have no attention that can be edited. Choose layers of the other kind."
        )
    return plan


def _check_heads(edits: Sequence[AttentionEdit], layers: nn.ModuleList) -> None:
    heads = anatomy.head_count(layers)
    for edit in edits:
        outside = [head for head in edit.heads or () if not 0 <= head < heads]
        if outside:
            raise InputError(f"Head {outside[0]} lies outside a decoder of {heads} heads (0 to {heads - 1}).")
