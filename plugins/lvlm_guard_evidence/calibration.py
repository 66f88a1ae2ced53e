"""Log-odds and mixing weights, fitted on calibration pictures; what breaks answers there is left out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lvlm_guard import FitRefused
from lvlm_guard_evidence.examples import PictureLabels
from lvlm_guard_evidence.head import EvidenceHead, HeadEvidence, OddsScale
from lvlm_guard_evidence.mixing import Mixing, weigh_options
from lvlm_guard_evidence.questions import CalibrationQuestion
from lvlm_guard_evidence.reading import RowEvidence
from lvlm_guard_evidence.regression import fit_binary
from lvlm_guard_evidence.weighing import CalibrationCase, allow_loss, balance, choose_weights

FOLDS = 5
NOISE = 2.0
"""Standard errors within which a loss of answers is noise."""
GAIN = 1.64
"""Standard errors that a gain must exceed: one in twenty kinds passes by chance."""
LEAST = 40
"""Questions of a kind that weights are fitted on at least."""


def build_cases(
    questions: Sequence[CalibrationQuestion], margins: Sequence[Tensor], pictures: Sequence[HeadEvidence]
) -> list[CalibrationCase]:
    """Return the questions that the picture can say something about."""
    cases = []
    for question, margin in zip(questions, margins, strict=True):
        odds = weigh_options(question.claim, question.options, RowEvidence((pictures[question.picture],)))
        if odds is not None:
            cases.append(CalibrationCase(question, margin, torch.tensor(odds)))
    return cases


def fit_scales(head: EvidenceHead, pictures: Sequence[HeadEvidence], labels: PictureLabels) -> EvidenceHead:
    """Return the head with scores turned into log-odds, by a logistic regression for each level on calibration labels."""
    plain = replace(head, scales={level: OddsScale() for level in ("object", "attribute", "relation")})
    read = [replace(picture, head=plain) for picture in pictures]
    scales = {
        "object": _fit_scale(*_list_existence(read, labels)),
        "attribute": _fit_scale(*_list_values(read, labels)),
        "relation": _fit_scale(*_list_places(read, labels), has_constant=False),
    }
    return replace(head, scales={level: scale for level, scale in scales.items() if scale is not None})


def _fit_scale(scores: list[float], truths: list[float], *, has_constant: bool = True) -> OddsScale | None:
    truth = torch.tensor(truths)
    if len(scores) < LEAST or not 0 < float(truth.mean()) < 1:
        return None
    share = truth.mean()
    weights = torch.where(truth > 0, 0.5 / share, 0.5 / (1 - share))
    fitted = fit_binary(torch.tensor(scores)[:, None], truth, weights, has_constant=has_constant).tolist()
    return OddsScale(max(fitted[0], 0.0), fitted[1] if has_constant else 0.0)


def _list_existence(read: Sequence[HeadEvidence], labels: PictureLabels) -> tuple[list[float], list[float]]:
    pairs = [
        (picture.existence(name) or 0.0, float(labels.present[number, index]))
        for number, picture in enumerate(read)
        for index, name in enumerate(labels.table.names)
        if not math.isnan(float(labels.present[number, index]))
    ]
    return [score for score, _ in pairs], [truth for _, truth in pairs]


def _list_values(read: Sequence[HeadEvidence], labels: PictureLabels) -> tuple[list[float], list[float]]:
    scores: list[float] = []
    truths: list[float] = []
    for number, index in (~labels.described.isnan().any(-1)).nonzero().tolist() if labels.values else []:
        odds = read[number].attributes(labels.table.names[index]) or {}
        scores += [odds[value] for value in labels.values]
        truths += labels.described[number, index].tolist()
    return scores, truths


def _list_places(read: Sequence[HeadEvidence], labels: PictureLabels) -> tuple[list[float], list[float]]:
    """Return offsets of pairs of objects with one box each, and whether the first lies left or above."""
    scores: list[float] = []
    truths: list[float] = []
    for picture, boxes in zip(read, labels.boxes, strict=True):
        single = {index: findings[0] for index, findings in boxes.items() if len(findings) == 1}
        for first, second in ((first, second) for first in single for second in single if first < second):
            for axis, side in enumerate(("left", "above")):
                middles = [(single[each][axis] + single[each][axis + 2]) / 2 for each in (first, second)]
                names = labels.table.names[first], labels.table.names[second]
                score = picture.relation(names[0], side, names[1])
                if score is not None and middles[0] != middles[1]:
                    scores.append(score)
                    truths.append(float(middles[0] < middles[1]))
    return scores, truths


def fit_mixing(cases: Sequence[CalibrationCase]) -> tuple[dict[str, Mixing], dict[str, Any]]:
    """Return the mixing weights of each kind of question that they help, and what was found on calibration.

    Weights are chosen by `choose_weights`, and judged on pictures that they were not chosen on. A kind is left out where evidence
    answers no more questions than a constant chosen the same way, by more than noise, where it wins back no more answers against
    habit than chance, and where other answers get worse by more than is allowed and noise.

    Raises:
        FitRefused: No kind is left.
    """
    mixing: dict[str, Mixing] = {}
    findings: dict[str, Any] = {}
    for kind in dict.fromkeys(case.question.kind for case in cases):
        of_kind = [case for case in cases if case.question.kind == kind]
        findings[kind] = _judge_kind(of_kind)
        if "left_out" not in findings[kind]:
            mixing[kind] = choose_weights(of_kind)
    if not mixing:
        reasons = (
            "; ".join(f"{kind}: {result['left_out']}" for kind, result in findings.items())
            or "No question could be asked."
        )
        raise FitRefused(
            f"'patch_evidence' needs evidence that helps some kind of question, and none of {len(cases)} calibration questions is of one "
            f"that it helps: give more pictures, or labels that are true. {reasons}"
        )
    return mixing, findings


def fit_bias(cases: Sequence[CalibrationCase]) -> dict[str, Mixing]:
    """Return for each kind the constant that is chosen without evidence: a fitted bias, the control of evidence."""
    kinds = dict.fromkeys(case.question.kind for case in cases)
    of_kinds = {kind: [case for case in cases if case.question.kind == kind] for kind in kinds}
    return {
        kind: choose_weights(of_kind, with_evidence=False)
        for kind, of_kind in of_kinds.items()
        if len(of_kind) >= LEAST
    }


def _judge_kind(cases: Sequence[CalibrationCase]) -> dict[str, Any]:
    """Return what was found of one kind, and as `left_out` why it is, where it is."""
    before = [case.is_right(Mixing()) for case in cases]
    findings: dict[str, Any] = {"questions": len(cases), "greedy": _accuracies(before, cases)}
    if len(cases) < LEAST or len({case.question.truth for case in cases}) < 2:  # noqa: PLR2004 - nothing to tell apart
        return {**findings, "left_out": f"{len(cases)} questions, of which {LEAST} with different answers are needed"}
    changed, biased = (_answer_out_of_fold(cases, with_evidence=with_evidence) for with_evidence in (True, False))
    gain, error = _measure_gain(cases, changed, biased)
    findings |= {"with_evidence": _accuracies(changed, cases), "gain": [round(gain, 5), round(error, 5)]}
    if not gain > GAIN * error:
        reason = f"evidence adds {gain:.4f} to the accuracy with a constant, of which {GAIN * error:.4f} may be noise"
    elif not _wins(cases, before, changed):
        reason = "it wins back no more answers against habit than chance would, on other pictures"
    else:
        reason = find_break(cases, before, changed)
    return {**findings, "left_out": reason} if reason else findings


def _answer_out_of_fold(cases: Sequence[CalibrationCase], *, with_evidence: bool) -> list[bool]:
    """Return which answers are right under weights chosen on other pictures than those of their fold."""
    chosen = {}
    for fold in range(FOLDS):
        other_folds = [case for case in cases if case.question.picture % FOLDS != fold]
        chosen[fold] = choose_weights(other_folds, with_evidence=with_evidence) if other_folds else Mixing()
    return [case.is_right(chosen[case.question.picture % FOLDS]) for case in cases]


def _measure_gain(
    cases: Sequence[CalibrationCase], changed: Sequence[bool], biased: Sequence[bool]
) -> tuple[float, float]:
    """Return by how much evidence answers more than a constant does, the halves weighing the same, and the standard error by picture."""
    weights = balance(cases)
    weights = weights / weights.sum()
    of_pictures: dict[int, float] = {}
    for case, weight, after, before in zip(cases, weights.tolist(), changed, biased, strict=True):
        of_pictures[case.question.picture] = of_pictures.get(case.question.picture, 0.0) + weight * (after - before)
    gains = torch.tensor(list(of_pictures.values()), dtype=torch.float64)
    return float(gains.sum()), float(gains.std() * math.sqrt(len(gains))) if len(gains) > 1 else math.inf


def _wins(cases: Sequence[CalibrationCase], before: Sequence[bool], changed: Sequence[bool]) -> bool:
    """Return whether more answers against habit are won than lost, by more than a standard error; of all where none is."""
    against = [case.half == "habit_breaking" for case in cases]
    counted = against if any(against) else [True] * len(cases)
    pairs = [pair for *pair, counts in zip(before, changed, counted, strict=True) if counts]
    lost, won = pairs.count([True, False]), pairs.count([False, True])
    return won - lost > math.sqrt(won + lost)


def find_break(cases: Sequence[CalibrationCase], before: Sequence[bool], changed: Sequence[bool]) -> str:
    """Return which half of the answers got worse by more than is allowed and noise, with its numbers; empty where none did."""
    halves = {
        half: [pair for *pair, case in zip(before, changed, cases, strict=True) if case.half == half]
        for half in ("habit_true", "habit_breaking", "no_habit")
    }
    against = halves["habit_breaking"]
    won = (against.count([False, True]) - against.count([True, False])) / max(len(against), 1)
    allowed = {"habit_true": float(allow_loss(torch.tensor(won)))}
    for half, pairs in halves.items():
        if fault := describe_loss(pairs, allowed.get(half, 0.0)):
            return f"{half.replace('_', '-')} answers {fault}"
    return ""


def describe_loss(pairs: Sequence[Sequence[bool]], allowed: float = 0.0) -> str:
    """Return how answers got worse, right before and after in pairs, where that is more than the share allowed and noise; else nothing."""
    lost = sum(before and not after for before, after in pairs)
    won = sum(after and not before for before, after in pairs)
    if lost - won - allowed * len(pairs) <= NOISE * math.sqrt(lost + won):
        return ""
    shares = [sum(each) / len(pairs) for each in zip(*pairs, strict=True)]
    return f"fall from {shares[0]:.3f} to {shares[1]:.3f} of {len(pairs)} ({lost} lost, {won} won)"


def _accuracies(right: Sequence[bool], cases: Sequence[CalibrationCase]) -> dict[str, float]:
    halves: dict[str, list[bool]] = {}
    for each, case in zip(right, cases, strict=True):
        halves.setdefault(case.half, []).append(each)
    return {half: round(sum(of_half) / len(of_half), 4) for half, of_half in sorted(halves.items())}


def describe_mixing(mixing: Mapping[str, Mixing]) -> dict[str, list[float]]:
    """Return mixing weights as plain values."""
    return {kind: [weights.margin, weights.evidence, weights.constant] for kind, weights in mixing.items()}
