"""A score for every claim, from what was said, how far the model leans to yes, and the evidence; and what is decided by it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lvlm_guard import Artefact
from lvlm_guard_augmentation.claims import LEVELS, Level, SentenceClaim

NEVER = 1e6
"""A threshold that no score reaches; below minus this none falls."""
Weights = tuple[float, float, float, float]


@dataclass(frozen=True)
class LevelRule:
    """How claims of one level are scored and judged.

    Args:
        weights: Of a constant, of whether the claim was said, of the margin, and of the evidence.
        keep: What was said stays where its score is at least this.
        add: What was not said takes its place, or is added, where its score is at least this.
    """

    weights: Weights = (0.0, 0.0, 1.0, 1.0)
    keep: float = 0.0
    add: float = NEVER

    def score(self, margin: float, evidence: float | None, *, is_said: bool) -> float:
        """Return the score of a claim; no evidence counts as none either way."""
        constant, for_said, for_margin, for_evidence = self.weights
        return constant + for_said * is_said + for_margin * margin + for_evidence * (evidence or 0.0)


@dataclass(frozen=True)
class ScoringRules:
    """The rule of every level that is revised.

    Args:
        by_level: By level.
        needs_evidence: Whether they were fitted with evidence.
        names: Objects that may be added.
        values: Words that are attributes.
    """

    by_level: Mapping[Level, LevelRule]
    needs_evidence: bool = False
    names: tuple[str, ...] = ()
    values: tuple[str, ...] = ()

    @classmethod
    def from_artefact(cls, artefact: Artefact) -> "ScoringRules":
        """Return the rules of an artefact: weights `[levels, 4]` and thresholds `[levels, 2]`, in the order of `LEVELS`."""
        settings = artefact.manifest.get("settings", {})
        weights = artefact.read("weights", (len(LEVELS), 4)).tolist()
        thresholds = artefact.read("thresholds", (len(LEVELS), 2)).tolist()
        rules = {
            level: LevelRule(
                (weights_of_level[0], weights_of_level[1], weights_of_level[2], weights_of_level[3]), keep, add
            )
            for level, weights_of_level, (keep, add) in zip(LEVELS, weights, thresholds, strict=True)
            if level in settings.get("levels", ())
        }
        names, values = (tuple(settings.get(name, ())) for name in ("names", "values"))
        return cls(rules, bool(settings.get("with_evidence")), names, values)

    def to_tensors(self) -> dict[str, Tensor]:
        """Return weights and thresholds; levels without a rule have the standard ones."""
        rules = [self.by_level.get(level, LevelRule()) for level in LEVELS]
        return {
            "weights": torch.tensor([rule.weights for rule in rules]),
            "thresholds": torch.tensor([[rule.keep, rule.add] for rule in rules]),
        }


@dataclass(frozen=True)
class JudgedClaim:
    """A claim, what speaks for it, and what is decided.

    Args:
        claim: The claim.
        is_said: Whether the answer makes it.
        margin: How far the model leans to yes.
        evidence: Log-odds from the picture's tokens; None where there are none.
        score: The weighted sum.
    """

    claim: SentenceClaim
    is_said: bool
    margin: float
    evidence: float | None
    score: float


@dataclass
class Decisions:
    """What becomes of the claims of one answer.

    Args:
        dropped: Claims that go.
        replacing: What takes the place of a claim that goes.
        added: Claims that are added.
        records: Every claim as the report shows it.
    """

    dropped: list[SentenceClaim] = field(default_factory=list)
    replacing: dict[SentenceClaim, SentenceClaim] = field(default_factory=dict)
    added: list[SentenceClaim] = field(default_factory=list)
    records: list[dict[str, object]] = field(default_factory=list)


def decide(judged: list[JudgedClaim], rules: ScoringRules) -> Decisions:
    """Decide on every claim: objects are kept, dropped or added; attributes and relations kept, replaced or dropped."""
    decisions = Decisions()
    for each in judged:
        rule = rules.by_level[each.claim.level]
        decision = "kept"
        if each.claim.level == "object" and not each.is_said:
            decision = "added" if each.score >= rule.add else "not added"
            decisions.added += [each.claim] if decision == "added" else []
        elif each.is_said and each.score < rule.keep:
            best = max(_find_rivals(each, judged), key=lambda rival: rival.score, default=None)
            decision = "dropped"
            if best is not None and best.score >= rule.add:
                decision, decisions.replacing[each.claim] = f"replaced: {best.claim.text}", best.claim
            decisions.dropped.append(each.claim)
        elif not each.is_said:
            decision = "not said"
        decisions.records.append(record_claim(each, decision))
    return decisions


def _find_rivals(each: JudgedClaim, judged: list[JudgedClaim]) -> list[JudgedClaim]:
    """Return what else could be true in place of an attribute or a relation."""
    key = (each.claim.level, each.claim.subject, each.claim.reference)
    return [
        rival
        for rival in judged
        if each.claim.level != "object"
        and not rival.is_said
        and (rival.claim.level, rival.claim.subject, rival.claim.reference) == key
    ]


def record_claim(each: JudgedClaim, decision: str) -> dict[str, object]:
    """Return a claim as the report shows it."""
    return {
        "text": each.claim.text,
        "question": each.claim.question,
        "margin": each.margin,
        "evidence": each.evidence,
        "score": each.score,
        "decision": decision,
    }
