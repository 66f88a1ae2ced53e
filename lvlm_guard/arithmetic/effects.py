"""What the strategies of one call did to main's logits: counted on the device, read once at the end."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lvlm_guard.arithmetic import fusion
from lvlm_guard.arithmetic.touched import Touched
from lvlm_guard.errors import NoEffectWarning, NonFiniteLogits
from lvlm_guard.strategy.branches import Branch
from lvlm_guard.strategy.generation import Generation

SAME_IMAGE_TOLERANCE = 1e-6
CALLER = 6  # frames from warnings.warn up to whoever called Guard.generate


@dataclass(frozen=True)
class Effect:
    """What one strategy did to main's logits.

    Args:
        name: Its name.
        tokens_changed: Positions where main's logits plus this strategy's terms alone prefer another token than main.
        positions: Positions looked at, all rows together.
        had_effect: Whether it changed any logit at all.
    """

    name: str
    tokens_changed: int
    positions: int
    had_effect: bool


class Effects:
    """Notes of one guarded call.

    Args:
        strategies: Names of the strategies that answer `terms`.
        branches: The branches of the call.
    """

    def __init__(self, strategies: Sequence[str], branches: Mapping[Hashable, Branch]) -> None:
        self._strategies = strategies
        self._branches = branches
        self._touched = Touched()
        self._same_image: dict[Hashable, Tensor] = {}
        self._unfit: Tensor | None = None
        self._edited: dict[str, bool | None] = {}

    def note(self, gen: Generation, terms: Mapping[str, list[Any]], combined: Tensor | None) -> None:
        """Take notes of one forward: main's logits, each strategy's terms, and what came of all of them."""
        if gen.step == 0:
            self._compare_images(gen)
        if self._strategies:
            self._note_choices(gen, terms, combined)
        if combined is not None:
            self._note_finite(gen, combined)

    def _note_choices(self, gen: Generation, terms: Mapping[str, list[Any]], combined: Tensor | None) -> None:
        self._touched.look(gen.step)
        best = gen.logits().float().argmax(-1)  # a CPU is three times as slow in half precision
        for name in self._strategies:
            alone = combined if len(terms) == 1 else fusion.combine(gen, terms.get(name, ()))
            gen.rows.append(_history(name), self._changed(gen, name, alone if name in terms else None, best))

    def _changed(self, gen: Generation, name: str, alone: Tensor | None, best: Tensor) -> Tensor:
        """True where the strategy alone prefers another token than main `[rows, positions]`."""
        if alone is None:
            return torch.zeros_like(best, dtype=torch.bool)
        self._touched.note(name, gen.logits(), alone)
        return alone.argmax(-1) != best

    def _note_finite(self, gen: Generation, combined: Tensor) -> None:
        unfit = ~combined.amax(-1).isfinite().all()
        self._unfit = unfit if self._unfit is None else self._unfit | unfit
        if gen.step == 0:
            self.check_finite()

    def check_finite(self) -> None:
        """Raise `NonFiniteLogits` when a row of combined logits had no finite maximum."""
        if self._unfit is not None and bool(self._unfit):
            raise NonFiniteLogits(
                "The combined logits are NaN, infinite or all removed. Check the model in this dtype with plain "
                "generate, and the strategies' restrictions and biases."
            )

    def _compare_images(self, gen: Generation) -> None:
        """Note at the prefill whether branches that differ only in the image differ in their logits."""
        main = gen.logits().float()
        for key, branch in self._branches.items():
            if not (branch.tokens or branch.drops_image):
                difference = (gen.logits(key).float() - main).abs().amax()
                self._same_image[key] = difference <= main.abs().amax() * SAME_IMAGE_TOLERANCE

    def effect(self, gen: Generation, name: str, unfinished: Tensor | None, *, edited: bool | None = None) -> Effect:
        """Effect of one strategy; positions outside `unfinished` `[rows, tokens]` do not count.

        `edited` tells whether its edits inside the layers changed anything, None where it has none; which tokens
        changed for them is not known without a run that lacks them.
        """
        self._edited[name] = edited
        if _history(name) not in gen.rows:
            return Effect(name, 0, 0, had_effect=bool(edited))
        changed = gen.rows[_history(name)]
        counted = torch.ones_like(changed) if unfinished is None else unfinished.to(changed.device)
        length = min(changed.shape[1], counted.shape[1])
        changed, counted = changed[:, :length], counted[:, :length]
        touched = bool(edited) or self._touched.any_of([name])
        return Effect(name, int((changed & counted).sum()), int(counted.sum()), touched)

    def warn(self, effects: Sequence[Effect]) -> None:
        """Warn about strategies that changed no logit, and about a model that does not see the image."""
        for one in effects:
            answers = one.name in self._strategies or self._edited.get(one.name) is not None
            if answers and not one.had_effect:
                message = f"{one.name!r} changed no logit of this call: is it at its neutral value?"
                warnings.warn(message, NoEffectWarning, stacklevel=CALLER)
        for key, same in self._same_image.items():
            if bool(same):
                message = (
                    f"Branch {key_text(key)} edits the image, but its logits equal main's: "
                    "the image does not change what this model says."
                )
                warnings.warn(message, NoEffectWarning, stacklevel=CALLER)


def key_text(key: Hashable) -> str:
    """A branch's key for people."""
    return " ".join(map(str, key)) if isinstance(key, tuple) else str(key)


def _history(name: str) -> str:
    return f"changed/{name}"
