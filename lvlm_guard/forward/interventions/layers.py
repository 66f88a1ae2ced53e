"""Everything that is done inside the layers during one guarded call, installed and undone together."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

from torch import Tensor, nn

from lvlm_guard import anatomy
from lvlm_guard.arithmetic.effect_tracking import EffectTracker
from lvlm_guard.errors import ModelRefused
from lvlm_guard.forward.installations import hooked
from lvlm_guard.forward.interventions import attention
from lvlm_guard.forward.interventions.attention_layers import find_attention
from lvlm_guard.forward.interventions.attention_planning import collect_places, plan_attention
from lvlm_guard.forward.interventions.compiled import run_uncompiled
from lvlm_guard.forward.interventions.hidden import HiddenHooks
from lvlm_guard.forward.interventions.readouts import Lens, ReadoutHooks
from lvlm_guard.forward.interventions.running import Attending, RunningForward
from lvlm_guard.protocols import Model
from lvlm_guard.strategy.edits import AttentionCapture, AttentionEdit, HiddenEdit, Readout, readout_layers


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
        self.attention_plan: dict[nn.Module, list[AttentionEdit | AttentionCapture]] = {}
        self.attention_modules: Mapping[nn.Module, Attending] = {}
        self.is_empty = not (attention_edits or attention_captures or hidden_edits or readouts)
        self._module = module
        self._attended: dict[Hashable, frozenset[tuple[Hashable, int]]] = {}
        self._hidden: HiddenHooks | None = None
        self._readouts: ReadoutHooks | None = None
        if not self.is_empty:
            layers = anatomy.decoder_layers(module)
            if attention_edits or attention_captures:
                self.attention_modules = find_attention(module)
                work: list[AttentionEdit | AttentionCapture] = [*attention_edits, *attention_captures]
                self.attention_plan = plan_attention(work, len(layers), self.attention_modules)
                self._attended = collect_places(self.attention_plan, self.attention_modules)
            self._hidden = HiddenHooks(self, module, layers, hidden_edits, self.effects)
            self._readouts = self._hook_readouts(layers, readouts)

    def _hook_readouts(self, layers: nn.ModuleList, readouts: Sequence[Readout]) -> ReadoutHooks | None:
        indices = frozenset(index for readout in readouts for index in readout_layers(readout, len(layers)))
        return ReadoutHooks(self, Lens(self._module, indices), layers, readouts) if indices else None

    def read(self, running: RunningForward, logits: Tensor, keep: int) -> dict[tuple[int, bool], Tensor]:
        """Logits `[rows, keep, vocab]` of every layer asked for, by (layer, whether normed), after main's forward."""
        return {} if self._readouts is None else self._readouts.read(running, logits, keep)

    def check_applied(self, running: RunningForward) -> None:
        """Check that a forward which has run came to every edit and capture that applies in it.

        Raises:
            ModelRefused: It did not run a layer, or not its attention.
        """
        awaited = (self._attended.get(branch, frozenset()) for branch in running.layout.prompts)
        missed = {layer for places in awaited for _, layer in places - running.applied}
        if self._hidden is not None:
            missed |= self._hidden.find_missed(running)
        if missed:
            raise ModelRefused(
                f"A forward of {type(self._module).__name__} did not run what is edited in layers {sorted(missed)}, so the "
                "edits were not applied there. Leave these layers out."
            )

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
