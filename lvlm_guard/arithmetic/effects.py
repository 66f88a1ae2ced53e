"""What the strategies of one call did to main's logits: counted on the device, read once at the end."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lvlm_guard.arithmetic import fusion
from lvlm_guard.arithmetic.effect_tracking import EffectTracker
from lvlm_guard.arithmetic.finiteness import FinitenessCheck
from lvlm_guard.errors import NoEffectWarning
from lvlm_guard.strategy.branches import Branch
from lvlm_guard.strategy.generation import Generation
from lvlm_guard.strategy.terms import Term
from lvlm_guard.user_warnings import warn_user

SAME_IMAGE_TOLERANCE = 1e-6
MAIN_CHOICES, GUARDED_CHOICES = "choices/main", "choices/guarded"
"""Names in `gen.rows` of the best tokens by main's logits, and by what generate receives, int64 `[rows, tokens]`."""


@dataclass(frozen=True)
class Effect:
    """What one strategy did to main's logits.

    Args:
        name: Its name.
        tokens_changed: Positions where main's logits plus this strategy's terms alone prefer another token than main;
            None where only a run without it would tell.
        positions: Positions looked at, all rows together.
        had_effect: Whether it changed a logit, main's inputs, a layer or an answer, or searched.
    """

    name: str
    tokens_changed: int | None
    positions: int
    had_effect: bool


class EffectRecorder:
    """Record what happens to main's logits in one guarded call.

    Args:
        strategies: Names of the strategies that answer `terms`.
        branches: The branches of the call.
    """

    def __init__(self, strategies: Sequence[str], branches: Mapping[Hashable, Branch]) -> None:
        self._strategies = strategies
        self._branches = branches
        self._tracker = EffectTracker()
        self._same_image: dict[Hashable, Tensor] = {}
        self._finiteness = FinitenessCheck()

    def record_forward(self, gen: Generation, terms: Mapping[str, Sequence[Term]], combined: Tensor | None) -> None:
        """Record one forward: main's logits, the terms of each strategy, and the sum of all of them.

        Raises:
            NonFiniteLogits: As `check_finite` does; on an accelerator at tokens 1, 2, 3, 5, 9 and so on.
        """
        if gen.step == 0:
            self._compare_images(gen)
        if self._strategies:
            self._record_choices(gen, terms, combined)
        self._finiteness.record(gen, combined)

    def check_finite(self) -> None:
        """Raise `NonFiniteLogits` when a row of main's, a branch's or the combined logits had no finite maximum."""
        self._finiteness.check()

    def measure_effect(self, gen: Generation, name: str, unfinished: Tensor | None, *, acted: bool) -> Effect:
        """Return the effect of one strategy.

        Args:
            gen: The travelling object.
            name: Name of the strategy.
            unfinished: True at the positions that count `[rows, tokens]`; None when all do.
            acted: Whether anything but its terms changed something: edits of inputs or layers, a search, a revision. Which
                tokens changed because of it only a run without it would tell.
        """
        history = _history_name(name)
        if history not in gen.rows:
            return Effect(name, None if acted else 0, 0, had_effect=acted)
        changed = gen.rows[history]
        counted = torch.ones_like(changed) if unfinished is None else unfinished.to(changed.device)
        length = min(changed.shape[1], counted.shape[1])
        changed, counted = changed[:, :length], counted[:, :length]
        had_effect = acted or self._tracker.had_effect([name])
        return Effect(name, None if acted else int((changed & counted).sum()), int(counted.sum()), had_effect)

    def warn_without_effect(self, names: Sequence[str]) -> None:
        """Warn about strategies that changed nothing, and about a model that does not see the image."""
        for name in names:
            warn_user(f"{name!r} changed no logit of this call: is it at its neutral value?", NoEffectWarning)
        for key, is_same in self._same_image.items():
            if bool(is_same):
                message = (
                    f"Branch {format_key(key)} edits the image, but its logits equal main's: "
                    "the image does not change what this model says."
                )
                warn_user(message, NoEffectWarning)

    def _record_choices(self, gen: Generation, terms: Mapping[str, Sequence[Term]], combined: Tensor | None) -> None:
        self._tracker.read_when_due(gen.step)
        best = gen.logits().float().argmax(-1)  # a CPU is three times as slow in half precision
        guarded = best if combined is None else combined.argmax(-1)
        for name in self._strategies:
            alone = combined if len(terms) == 1 else fusion.combine(gen, terms.get(name, ()))
            if name not in terms or alone is None:
                choices = best
            else:
                self._tracker.record(name, gen.logits(), alone)
                choices = guarded if alone is combined else alone.argmax(-1)
            gen.rows.append(_history_name(name), choices != best)
        gen.rows.append(MAIN_CHOICES, best)
        gen.rows.append(GUARDED_CHOICES, guarded)

    def _compare_images(self, gen: Generation) -> None:
        """Record at the prefill whether branches that differ only in the image differ in their logits."""
        main = gen.logits().float()
        for key, branch in self._branches.items():
            if not (branch.tokens or branch.drops_image):
                difference = (gen.logits(key).float() - main).abs().amax()
                self._same_image[key] = difference <= main.abs().amax() * SAME_IMAGE_TOLERANCE


def format_key(key: Hashable) -> str:
    """Return the key of a branch as text for people."""
    return " ".join(map(str, key)) if isinstance(key, tuple) else str(key)


def _history_name(strategy: str) -> str:
    return f"changed/{strategy}"
