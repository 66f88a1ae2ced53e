"""Log-odds and mixing weights, fitted on calibration pictures; what breaks answers there is left out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lvlm_guard import FitRefused
from lvlm_guard_evidence.examples import PictureLabels
from lvlm_guard_evidence.head import EvidenceHead, HeadEvidence, OddsScale
from lvlm_guard_evidence.mixing import Mixing, weigh_options
from lvlm_guard_evidence.questions import CalibrationQuestion
from lvlm_guard_evidence.reading import RowEvidence
from lvlm_guard_evidence.regression import fit_binary, fit_choice

FOLDS = 5
NOISE = 2.0
"""Standard errors within which a loss of answers is noise."""
GAIN = 1.64
"""Standard errors that a gain must exceed: one in twenty kinds passes by chance."""
LEAST = 40
"""Questions of a kind that weights are fitted on at least."""
SHARES = (1.0, 0.75, 0.5, 0.25)
"""Shares of the fitted change that are tried."""


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

    def features(self, *, with_evidence: bool) -> Tensor:
        """Return what is weighed for each answer `[answers, features]`: margin, evidence, and which is yes."""
        columns = [self.margins - self.margins.mean()]
        if with_evidence:
            columns.append(self.odds - self.odds.mean())
        if not self.question.claim.is_open:
            columns.append(torch.tensor([0.5, -0.5]))
        return torch.stack(columns, dim=-1)


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

    Weights are fitted by logistic regression, where halves and answers weigh the same. A kind is left out where evidence adds no
    more than noise to the margin and a constant, on pictures that were not fitted on. Of each change the share is made that answers
    most questions of such pictures, the halves weighing the same; a share that wins back no more answers against habit than chance, or
    with which answers of either half get worse by more than noise, is none, and a kind without any is left out.

    Raises:
        FitRefused: No kind is left.
    """
    mixing: dict[str, Mixing] = {}
    findings: dict[str, Any] = {}
    for kind in dict.fromkeys(case.question.kind for case in cases):
        of_kind = [case for case in cases if case.question.kind == kind]
        weights, findings[kind] = _fit_kind(of_kind)
        if weights is not None:
            mixing[kind] = weights
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
    """Return for each kind the weights of margin and constant alone: a fitted bias, the control of evidence."""
    kinds = dict.fromkeys(case.question.kind for case in cases)
    of_kinds = {kind: [case for case in cases if case.question.kind == kind] for kind in kinds}
    return {kind: _fit(of_kind, with_evidence=False) for kind, of_kind in of_kinds.items() if len(of_kind) >= LEAST}


def _fit_kind(cases: Sequence[CalibrationCase]) -> tuple[Mixing | None, dict[str, Any]]:
    """Return the weights of one kind, None where it is left out, and what was found."""
    findings: dict[str, Any] = {
        "questions": len(cases),
        "greedy": _accuracies([_is_right(case, Mixing()) for case in cases], cases),
    }
    if len(cases) < LEAST or len({case.question.truth for case in cases}) < 2:  # noqa: PLR2004 - nothing to tell apart
        return None, {
            **findings,
            "left_out": f"{len(cases)} questions, of which {LEAST} with different answers are needed",
        }
    gain, error = _measure_gain(cases)
    findings["gain"] = [round(gain, 5), round(error, 5)]
    if not gain > GAIN * error:
        return None, {
            **findings,
            "left_out": f"evidence adds {gain:.4f} nats to margin and constant, of which {GAIN * error:.4f} may be noise",
        }
    return _choose_share(cases, findings)


def _choose_share(cases: Sequence[CalibrationCase], findings: dict[str, Any]) -> tuple[Mixing | None, dict[str, Any]]:
    """Return the share of the fitted change that answers most questions of other pictures, both halves weighing the same."""
    out_of_fold, best = _predict_out_of_fold(cases), _balanced([_is_right(case, Mixing()) for case in cases], cases)
    chosen, breaks = (
        0.0,
        "no share of the change wins back more answers against habit than chance would, on other pictures",
    )
    for share in SHARES:
        changed = [_is_right(case, _shrink(weights, share)) for case, weights in zip(cases, out_of_fold, strict=True)]
        if share == SHARES[0]:
            breaks = find_break(cases, changed) or breaks
        is_better = _balanced(changed, cases) > best and _wins(cases, changed)
        if is_better and not find_break(cases, changed):
            chosen, best = share, _balanced(changed, cases)
            findings["with_evidence"], findings["share"] = _accuracies(changed, cases), share
    return (_shrink(_fit(cases), chosen), findings) if chosen else (None, {**findings, "left_out": breaks})


def _wins(cases: Sequence[CalibrationCase], changed: Sequence[bool]) -> bool:
    """Return whether more answers against habit are won than lost, by more than a standard error; of all where none is."""
    against = [case.half == "habit_breaking" for case in cases]
    counted = against if any(against) else [True] * len(cases)
    pairs = [
        (_is_right(case, Mixing()), after)
        for case, after, counts in zip(cases, changed, counted, strict=True)
        if counts
    ]
    lost = sum(before and not after for before, after in pairs)
    won = sum(after and not before for before, after in pairs)
    return won - lost > math.sqrt(won + lost)


def _balanced(right: Sequence[bool], cases: Sequence[CalibrationCase]) -> float:
    """Return the mean of the accuracies on both halves; of all questions where none has a habit."""
    halves = _accuracies(right, cases)
    of_habits = [share for half, share in halves.items() if half != "no_habit"]
    return sum(of_habits or halves.values()) / len(of_habits or halves)


def find_break(cases: Sequence[CalibrationCase], changed: Sequence[bool]) -> str:
    """Return which half of the answers got worse by more than noise, with its numbers; empty where none did."""
    for half in ("habit_true", "habit_breaking", "no_habit"):
        pairs = [
            (_is_right(case, Mixing()), after) for case, after in zip(cases, changed, strict=True) if case.half == half
        ]
        if fault := describe_loss(pairs):
            return f"{half.replace('_', '-')} answers {fault}"
    return ""


def describe_loss(pairs: Sequence[tuple[bool, bool]]) -> str:
    """Return how answers got worse, right before and after in pairs, where that is more than noise; else nothing."""
    lost = sum(before and not after for before, after in pairs)
    won = sum(after and not before for before, after in pairs)
    if lost - won <= NOISE * math.sqrt(lost + won):
        return ""
    shares = [sum(each) / len(pairs) for each in zip(*pairs, strict=True)]
    return f"fall from {shares[0]:.3f} to {shares[1]:.3f} of {len(pairs)} ({lost} lost, {won} won)"


def _accuracies(right: Sequence[bool], cases: Sequence[CalibrationCase]) -> dict[str, float]:
    halves: dict[str, list[bool]] = {}
    for each, case in zip(right, cases, strict=True):
        halves.setdefault(case.half, []).append(each)
    return {half: round(sum(of_half) / len(of_half), 4) for half, of_half in sorted(halves.items())}


def _is_right(case: CalibrationCase, mixing: Mixing) -> bool:
    mixed = case.margins + mixing.mix(case.margins, case.odds)
    return int(mixed.argmax()) == case.question.truth


def _balance(cases: Sequence[CalibrationCase]) -> Tensor:
    """Return weights under which the answers of yes/no questions weigh the same, and so do the halves `[cases]`.

    Questions without a habit weigh as much as the mean of those with one.
    """
    groups = [(case.half, None if case.question.claim.is_open else case.question.truth) for case in cases]
    sizes = Counter(groups)
    with_habit = sum(size for (half, _), size in sizes.items() if half != "no_habit") or len(cases)
    kinds = sum(half != "no_habit" for half, _ in sizes) or 1
    return torch.tensor(
        [kinds / with_habit if group[0] == "no_habit" else 1.0 / sizes[group] for group in groups], dtype=torch.float64
    )


def _fit(cases: Sequence[CalibrationCase], *, with_evidence: bool = True) -> Mixing:
    features = [case.features(with_evidence=with_evidence) for case in cases]
    is_open = cases[0].question.claim.is_open
    free = features[0].shape[1] - (not is_open)
    fitted = fit_choice(features, [case.question.truth for case in cases], _balance(cases), free).tolist()
    evidence = fitted[1] if with_evidence else 0.0
    mixing = Mixing(fitted[0], evidence, 0.0 if is_open else fitted[-1])
    return mixing if mixing.margin >= 0 and mixing.evidence >= 0 else _clip(mixing)


def _clip(mixing: Mixing) -> Mixing:
    """Return weights without negative ones: neither the model nor the picture is turned round."""
    return Mixing(max(mixing.margin, 0.0), max(mixing.evidence, 0.0), mixing.constant)


def _shrink(mixing: Mixing, share: float) -> Mixing:
    return Mixing(1 + share * (mixing.margin - 1), share * mixing.evidence, share * mixing.constant)


def _predict_out_of_fold(cases: Sequence[CalibrationCase], *, with_evidence: bool = True) -> list[Mixing]:
    """Return for each case the weights fitted on other pictures than those of its fold."""
    fitted = {}
    for fold in range(FOLDS):
        other_folds = [case for case in cases if case.question.picture % FOLDS != fold]
        fitted[fold] = _fit(other_folds, with_evidence=with_evidence) if other_folds else Mixing()
    return [fitted[case.question.picture % FOLDS] for case in cases]


def _measure_gain(cases: Sequence[CalibrationCase]) -> tuple[float, float]:
    """Return how many nats evidence adds to the weighted log-likelihood of other pictures, and the standard error by picture."""
    weights = _balance(cases)
    weights = weights / weights.sum()
    logs = {
        with_evidence: [
            _log_likelihood(case, mixing)
            for case, mixing in zip(cases, _predict_out_of_fold(cases, with_evidence=with_evidence), strict=True)
        ]
        for with_evidence in (True, False)
    }
    of_pictures: dict[int, float] = {}
    for case, weight, after, before in zip(cases, weights.tolist(), logs[True], logs[False], strict=True):
        of_pictures[case.question.picture] = of_pictures.get(case.question.picture, 0.0) + weight * (after - before)
    gains = torch.tensor(list(of_pictures.values()), dtype=torch.float64)
    return float(gains.sum()), float(gains.std() * math.sqrt(len(gains))) if len(gains) > 1 else math.inf


def _log_likelihood(case: CalibrationCase, mixing: Mixing) -> float:
    mixed = (case.margins - case.margins.mean()) + mixing.mix(case.margins, case.odds)
    return float(mixed.log_softmax(-1)[case.question.truth])


def describe_mixing(mixing: Mapping[str, Mixing]) -> dict[str, list[float]]:
    """Return mixing weights as plain values."""
    return {kind: [weights.margin, weights.evidence, weights.constant] for kind, weights in mixing.items()}
