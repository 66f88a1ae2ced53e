"""What the plan does inside the layers of the decoder and of the vision tower, for as long as a call runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from lvlm_guard.call.plan import Edit, Plan
from lvlm_guard.call.refusals import ATTENTION
from lvlm_guard.call.rules import EditedAttention, refuse
from lvlm_guard.errors import UncompiledWarning
from lvlm_guard.forward import LayerInterventions, PreparedDecode, is_compiled
from lvlm_guard.forward.compilation import compiles_by_itself
from lvlm_guard.forward.interventions import vision
from lvlm_guard.strategy.edits import AttentionCapture, AttentionEdit, HiddenEdit, Readout
from lvlm_guard.strategy.generation import Generation
from lvlm_guard.user_warnings import warn_user


@dataclass(frozen=True, eq=False)
class Towers:
    """What encodes images.

    Args:
        model: The model that is guarded: it may encode images outside of the module that decodes. None where that is all of it.
        has_image: Whether the call brings an image.
    """

    model: Any = None
    has_image: bool = True


@dataclass(frozen=True, eq=False)
class Interventions:
    """What a call does inside the layers.

    Args:
        inside: Edits, captures and readouts of the decoder.
        vision_edits: Edits of the vision tower.
        towers: What encodes images.
    """

    inside: LayerInterventions
    vision_edits: Sequence[HiddenEdit]
    towers: Towers

    @property
    def is_empty(self) -> bool:
        """Whether nothing is hooked into any layer."""
        return self.inside.is_empty and not self.vision_edits

    @contextmanager
    def installed(self, main: PreparedDecode, gen: Generation) -> Iterator[None]:
        """Hook everything in; all of it is undone on the way out."""
        edits, effects = self.vision_edits, self.inside.effects
        in_towers = vision.installed(
            main.module, self.towers.model, edits, gen, effects, has_image=self.towers.has_image
        )
        with self.inside.installed(), in_towers:
            yield

    def had_effect(self, edits: Sequence[Edit]) -> bool | None:
        """Return whether any of these edits changed anything; None where there is no edit among them."""
        keys = [id(edit) for edit in edits if isinstance(edit, (AttentionEdit, HiddenEdit))]
        return self.inside.effects.had_effect(keys) if keys else None


def build_interventions(plan: Plan, gen: Generation, main: PreparedDecode, towers: Towers) -> Interventions:
    """Return what the plan does inside the layers of this model.

    Raises:
        StrategyRefused: Attention to an image that is not there.
        InputError: A layer or head outside the model.
        ModelRefused: The model has no part of the kind an edit names.
    """
    attention, hidden = plan.edits_of(AttentionEdit), plan.edits_of(HiddenEdit)
    of_decoder = [edit for edit in hidden if edit.tower == "decoder"]
    inside = LayerInterventions(
        main.module, attention, plan.edits_of(AttentionCapture), of_decoder, plan.edits_of(Readout)
    )
    refuse(ATTENTION, EditedAttention(attention, gen.prompt.image_mask, main))
    return Interventions(inside, [edit for edit in hidden if edit.tower == "vision"], towers)


def warn_if_uncompiled(main: PreparedDecode, *, hooked: bool) -> None:
    """Warn when a compiled model runs uncompiled in this call; `hooked` when something is hooked into its layers."""
    if hooked and (is_compiled(main.module) or compiles_by_itself(main)):
        warn_user(
            "The stack works inside the layers, where a compiled graph would miss it, so this call ran uncompiled.",
            UncompiledWarning,
        )
    elif getattr(main.module, "_compiled_call_impl", None) is not None:
        warn_user(
            "A guard stands between a compiled module and its forward, so this call ran uncompiled. Compile the forward: "
            "model.forward = torch.compile(model.forward).",
            UncompiledWarning,
        )
