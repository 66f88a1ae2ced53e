"""How evidence is mixed with what the model would answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lvlm_guard_evidence.answers import NUMBERS, YES_NO
from lvlm_guard_evidence.claims import OPPOSITE, Claim
from lvlm_guard_evidence.names import tidy
from lvlm_guard_evidence.reading import RowEvidence


@dataclass(frozen=True)
class Mixing:
    """Weights of one kind of question: the margin becomes `margin * a + evidence * b + c`. 1, 0, 0 is neutral.

    Of questions with more than two answers, each answer's logit, less the mean of all, takes the place of the margin.

    Args:
        margin: Weight of the model's own margin.
        evidence: Weight of the evidence.
        constant: What is added to yes; nothing to open questions.
    """

    margin: float = 1.0
    evidence: float = 0.0
    constant: float = 0.0

    def mix(self, margins: Tensor, evidence: Tensor) -> Tensor:
        """Return what is added to the logits of each answer `[answers]`: half of a shift to yes, and half from no."""
        centred, centred_odds = margins - margins.mean(-1, keepdim=True), evidence - evidence.mean(-1, keepdim=True)
        change = (self.margin - 1) * centred + self.evidence * centred_odds
        if self.constant:
            change = change + change.new_tensor([self.constant / 2, -self.constant / 2])
        return change


def read_mixing(settings: Mapping[str, Any]) -> dict[str, Mixing]:
    """Return the weights of each kind of question that some were fitted for.

    Artefacts made before sides and heights were fitted apart have weights for both under one name.
    """
    mixing = settings.get("mixing")
    pairs = mixing.items() if isinstance(mixing, Mapping) else ()
    fitted = {str(kind): Mixing(*map(float, weights)) for kind, weights in pairs}
    if (common := fitted.pop("is_relation", None)) is not None:
        fitted |= {"is_side": common, "is_height": common, "which_height": fitted.get("which_side", Mixing())}
    return fitted


def weigh_options(claim: Claim, options: Sequence[str], evidence: RowEvidence) -> list[float] | None:
    """Return log-odds for each answer of a question; None where the evidence cannot tell.

    A yes has half of the claim's log-odds, and a no takes them, so that their difference is the evidence.
    """
    if tuple(options) == YES_NO:
        odds = weigh(claim, evidence)
        return None if odds is None else [odds / 2, -odds / 2]
    if claim.level == "attribute":
        of_values = evidence.attributes(claim.subject)
        return None if of_values is None else [of_values[value] for value in options]
    if claim.level == "number":
        count = evidence.number(claim.subject)
        return None if count is None else [-abs(count - NUMBERS.index(option)) for option in options]
    sides = [evidence.relation(claim.subject, side, claim.reference or "") for side in options]
    odds_of_sides = [side / 2 for side in sides if side is not None]
    return odds_of_sides if len(odds_of_sides) == len(sides) else None


def weigh(claim: Claim, evidence: RowEvidence) -> float | None:
    """Return the log-odds of a claim; None where the evidence cannot tell."""
    if claim.level == "object":
        return evidence.existence(claim.subject)
    if claim.level == "attribute" and claim.value is not None:
        return evidence.attribute(claim.subject, tidy(claim.value))
    if claim.level == "relation" and claim.direction in OPPOSITE:
        return evidence.relation(claim.subject, claim.direction, claim.reference or "")
    return None
