"""Weights and thresholds that leave the fewest inventions at a recall that hardly falls, on two halves apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from lvlm_guard_augmentation.scoring import NEVER, LevelRule, Weights

MOST = 200
"""Thresholds that are tried of each kind."""
RIDGE = 1e-2
STEPS = 50


@dataclass(frozen=True)
class ClaimExample:
    """One claim with its truth.

    Args:
        picture: The number of its picture.
        is_said: Whether the caption makes it.
        margin: How far the model leans to yes.
        evidence: Log-odds, or None.
        true: Whether it holds.
        breaks: Whether its picture, or its object, breaks a habit.
        group: What it competes with, as values of one object do.
    """

    picture: int
    is_said: bool
    margin: float
    evidence: float | None
    true: bool
    breaks: bool
    group: str = ""


@dataclass(frozen=True)
class ThresholdOutcome:
    """What thresholds make of the examples.

    Args:
        wrong: False claims in the captions.
        right: True ones, where habits are kept and where they are broken.
        wrong_before: False claims of the captions as they were.
        right_before: True ones of these.
    """

    wrong: int
    right: tuple[int, int]
    wrong_before: int
    right_before: tuple[int, int]


def fit_weights(examples: Sequence[ClaimExample], *, with_evidence: bool) -> Weights:
    """Fit a logistic regression of whether claims hold, by Newton's method, in fp64; evidence weighs nothing without evidence."""
    features = torch.tensor(
        [[1.0, float(example.is_said), example.margin, example.evidence or 0.0] for example in examples],
        dtype=torch.float64,
    )
    labels = torch.tensor([float(example.true) for example in examples], dtype=torch.float64)
    used = features[:, : 4 if with_evidence else 3]
    weights = used.new_zeros(used.shape[1])
    for _ in range(STEPS):
        chance = (used @ weights).sigmoid()
        slope = used.T @ (labels - chance) - RIDGE * weights
        curve = (used * (chance * (1 - chance))[:, None]).T @ used + RIDGE * torch.eye(len(weights), dtype=used.dtype)
        weights = weights + torch.linalg.solve(curve, slope)
    coefficients = [*weights.tolist(), 0.0][:4]
    return coefficients[0], coefficients[1], coefficients[2], coefficients[3]


def choose_object_thresholds(
    examples: Sequence[ClaimExample], weights: Weights, present: tuple[int, int], tolerance: float
) -> tuple[LevelRule, ThresholdOutcome]:
    """Choose when objects stay and when they are added.

    Args:
        examples: Claims that objects are there, each object once a picture.
        weights: Of the score.
        present: Objects that are there, in pictures that keep habits and in those that break them.
        tolerance: How far the recall of either may fall.
    """
    scorer = LevelRule(weights)
    scores = [scorer.score(example.margin, example.evidence, is_said=example.is_said) for example in examples]
    statements = [(score, example) for score, example in zip(scores, examples, strict=True) if example.is_said]
    unsaid = [(score, example) for score, example in zip(scores, examples, strict=True) if not example.is_said]
    keeps, adds = _propose([score for score, _ in statements], -NEVER), _propose([score for score, _ in unsaid], NEVER)
    counts_kept, counts_added = _count(statements, keeps), _count(unsaid, adds)
    before = _count(statements, [-NEVER])[0]
    wrong = counts_kept[:, None, 0] + counts_added[None, :, 0]
    right = counts_kept[:, None, 1:] + counts_added[None, :, 1:]
    floor = before[1:] - tolerance * torch.tensor(present, dtype=torch.float64)
    row, column = _pick(wrong, right, floor)
    outcome = ThresholdOutcome(int(wrong[row, column]), _pair(right[row, column]), int(before[0]), _pair(before[1:]))
    return LevelRule(weights, keeps[row], adds[column]), outcome


def choose_value_thresholds(
    examples: Sequence[ClaimExample], weights: Weights, tolerance: float
) -> tuple[LevelRule, ThresholdOutcome]:
    """Choose when a value stays, and when the best other one takes its place; else it goes."""
    scorer = LevelRule(weights)
    scored = [
        (scorer.score(example.margin, example.evidence, is_said=example.is_said), example) for example in examples
    ]
    statements = [(score, example) for score, example in scored if example.is_said]
    rivals = [
        max(
            (
                (score, example)
                for score, example in scored
                if not example.is_said and (example.picture, example.group) == (each.picture, each.group)
            ),
            key=lambda entry: entry[0],
            default=(-NEVER, each),
        )
        for _, each in statements
    ]
    keeps, adds = _propose([score for score, _ in statements], -NEVER), _propose([score for score, _ in rivals], NEVER)
    counts = torch.zeros(len(keeps), len(adds), 3, dtype=torch.float64)
    for (score, example), (best, rival) in zip(statements, rivals, strict=True):
        stays = torch.tensor([score >= keep for keep in keeps])[:, None]
        comes = ~stays & torch.tensor([best >= add for add in adds])[None]
        counts[..., _column(example)] += stays
        counts[..., _column(rival)] += comes
    before = _count(statements, [-NEVER])[0]
    floor = before[1:] - tolerance * before[1:]
    row, column = _pick(counts[..., 0], counts[..., 1:], floor)
    outcome = ThresholdOutcome(
        int(counts[row, column, 0]), _pair(counts[row, column, 1:]), int(before[0]), _pair(before[1:])
    )
    return LevelRule(weights, keeps[row], adds[column]), outcome


def _propose(scores: Sequence[float], extreme: float) -> list[float]:
    """Return thresholds between scores, at most `MOST`, the highest ones, and one that changes nothing."""
    ordered = sorted(set(scores), reverse=extreme > 0)
    between = [(example + following) / 2 for example, following in pairwise(ordered)]
    return [extreme, *between[:MOST]]


def _count(scored: Sequence[tuple[float, ClaimExample]], thresholds: Sequence[float]) -> Tensor:
    """Return how many claims at or above each threshold are false, true and habitual, true and not `[thresholds, 3]`, fp64."""
    counts = torch.zeros(len(thresholds), 3, dtype=torch.float64)
    limits = torch.tensor(thresholds, dtype=torch.float64)
    for score, example in scored:
        counts[:, _column(example)] += limits <= score
    return counts


def _column(example: ClaimExample) -> int:
    return 1 + example.breaks if example.true else 0


def _pick(wrong: Tensor, right: Tensor, floor: Tensor) -> tuple[int, int]:
    """Return the place of the fewest wrong claims among those at the floor or above; of equals, that of the most right ones."""
    allowed = (right >= floor - 1e-9).all(-1)
    cost = wrong - 1e-6 * right.sum(-1)
    best = int(cost.masked_fill(~allowed, NEVER).argmin())
    return best // wrong.shape[1], best % wrong.shape[1]


def _pair(counts: Tensor) -> tuple[int, int]:
    return int(counts[0]), int(counts[1])
