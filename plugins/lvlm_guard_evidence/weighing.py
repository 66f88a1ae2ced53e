"""Choose the weights that win back most answers against habit and keep those that habit gets right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lvlm_guard_evidence.answers import YES_NO
from lvlm_guard_evidence.mixing import Mixing
from lvlm_guard_evidence.questions import CalibrationQuestion

LOSS_ALLOWED = 0.005
"""Share of the answers that habit gets right which may be lost, whatever is won."""
EXCHANGE = 0.05
"""Further ones may be lost where many are won: one point for twenty."""
SOFTNESS = 0.05
"""Answers within this share of the usual margin count as partly right, so that no weight is chosen for a few of them."""
EVIDENCE = (0.0, *torch.logspace(-2, 1.5, 71).tolist())
CONSTANTS = tuple(torch.linspace(-2, 2, 41).round(decimals=2).tolist())


@dataclass(frozen=True, eq=False)
class CalibrationCase:
    """One calibration question, as the model and the picture answer it.

    Args:
        question: The question.
        margins: How likely each answer begins, as the model has it `[answers]`.
        odds: Log-odds of each answer, as the picture has it `[answers]`.
    """

    question: CalibrationQuestion
    margins: Tensor
    odds: Tensor

    @property
    def half(self) -> str:
        """Which half of the answers it belongs to."""
        return {True: "habit_true", False: "habit_breaking", None: "no_habit"}[self.question.is_habitual]

    def is_right(self, mixing: Mixing) -> bool:
        """Return whether the best answer is the true one under these weights."""
        mixed = self.margins + mixing.mix(self.margins, self.odds)
        return int(mixed.argmax()) == self.question.truth


def balance(cases: Sequence[CalibrationCase]) -> Tensor:
    """Return weights under which the answers of yes/no questions weigh the same, and so do the halves, fp64 `[cases]`.

    Questions without a habit weigh as much as the mean of those with one.
    """
    groups = [(case.half, None if case.question.claim.is_open else case.question.truth) for case in cases]
    sizes = Counter(groups)
    with_habit = sum(size for (half, _), size in sizes.items() if half != "no_habit") or len(cases)
    kinds = sum(half != "no_habit" for half, _ in sizes) or 1
    return torch.tensor(
        [kinds / with_habit if group[0] == "no_habit" else 1.0 / sizes[group] for group in groups], dtype=torch.float64
    )


def choose_weights(cases: Sequence[CalibrationCase], *, with_evidence: bool = True) -> Mixing:
    """Return the weights of evidence and constant under which most answers are right that habit does not get right.

    Answers that habit gets right may become fewer by `LOSS_ALLOWED`, or by `EXCHANGE` of what is won where that is more. Neutral where
    nothing is won, and where habit gets all answers right.

    Args:
        cases: Questions of one kind.
        with_evidence: Whether evidence is weighed; else the constant alone, which is a fitted bias.
    """
    candidates = list_candidates(cases[0].question.options, with_evidence=with_evidence)
    chances, weights = _measure_chances(cases, candidates), balance(cases)
    is_kept = torch.tensor([case.half == "habit_true" for case in cases])
    wins, keeps = (_gain(chances, weights * chosen, candidates.index(Mixing())) for chosen in (~is_kept, is_kept))
    is_allowed = -keeps <= allow_loss(wins)
    best = int(torch.where(is_allowed, wins, -torch.inf).argmax())
    return candidates[best] if float(wins[best]) > 0 else Mixing()


def list_candidates(options: Sequence[str], *, with_evidence: bool = True) -> list[Mixing]:
    """Return the weights that are compared for questions with these answers: a constant leans to yes, and open questions have none."""
    return [
        Mixing(1.0, weight, constant)
        for weight in (EVIDENCE if with_evidence else EVIDENCE[:1])
        for constant in (CONSTANTS if tuple(options) == YES_NO else (0.0,))
    ]


def allow_loss(won: Tensor) -> Tensor:
    """Return the share of the answers that habit gets right which may be lost where this share of the others is won."""
    return torch.clamp(EXCHANGE * won, min=LOSS_ALLOWED)


def _gain(chances: Tensor, weights: Tensor, neutral: int) -> Tensor:
    """Return by how much each of the weights changes the share of right answers `[candidates]`."""
    shares = chances @ weights / weights.sum().clamp(min=1e-12)
    return shares - shares[neutral]


def _measure_chances(cases: Sequence[CalibrationCase], candidates: Sequence[Mixing]) -> Tensor:
    """Return how right each answer is under each of the weights, from 0 to 1, fp64 `[candidates, cases]`."""
    margins, odds = (torch.stack([getattr(case, name) for case in cases]).double() for name in ("margins", "odds"))
    truths = torch.tensor([[case.question.truth] for case in cases])
    width = SOFTNESS * float((margins.amax(1) - margins.amin(1)).median()) + 1e-9
    chances = []
    for mixing in candidates:
        mixed = margins + mixing.mix(margins, odds)
        rivals = mixed.scatter(1, truths, -torch.inf).amax(1)
        chances.append(torch.sigmoid((mixed.gather(1, truths)[:, 0] - rivals) / width))
    return torch.stack(chances)
