"""A bias towards yes or no, fitted to the margins of plain generate: what leaning either way gains, with no forward of its own."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from lvlm_guard.bench.items import AnsweredItem
from lvlm_guard.bench.scoring.margins import says_yes

FOLDS = 5
FEWEST_EACH = 20
"""True yes and true no that a kind of questions must have to be fitted by itself; else all of its level are fitted together."""

ANSWERS = {True: "Yes", False: "No"}
"""How a changed answer is written; every parser reads it."""


@dataclass(frozen=True)
class BiasStrength:
    """The bias of the questions of one level and kind.

    Args:
        level: The level.
        kind: The suite's own category.
        strengths: Strengths of `yes_bias` that would do the same, one for each fold of pictures; a single one where they
            were fitted on calibration items.
        fitted_on: Answers that the first of them was fitted on.
        n: Answers that they apply to.
    """

    level: str
    kind: str
    strengths: tuple[float, ...]
    fitted_on: int
    n: int


def apply_fitted_bias(
    answers: Sequence[AnsweredItem], calibration: Sequence[AnsweredItem] = ()
) -> tuple[list[AnsweredItem], list[BiasStrength]]:
    """Return answers pushed towards yes or no, level by level and kind by kind, for the best balanced accuracy.

    A push is fitted on calibration answers where there are any, else on the answers about the pictures of the other folds, so
    that no picture is answered by a push that has seen it. An answer that the push does not turn round stays as it is; so
    do answers without a margin, and all that are not about yes or no.

    Args:
        answers: Plain generate's.
        calibration: Plain generate's answers to the suite's calibration items.
    """
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for place, answer in enumerate(answers):
        if _has_margin(answer):
            groups[answer.item.level, answer.item.kind].append(place)
    pushed, strengths = list(answers), []
    for (level, kind), places in groups.items():
        shifts: dict[int, tuple[float, int]] = {}
        for place in places:
            fold = 0 if calibration else find_fold(answers[place].item.cluster)
            if fold not in shifts:
                training = calibration or [answer for answer in answers if find_fold(answer.item.cluster) != fold]
                shifts[fold] = _fit_group(training, level, kind)
            pushed[place] = _push(answers[place], shifts[fold][0])
        values = tuple(shift / 2 for _, (shift, _) in sorted(shifts.items()))
        strengths.append(BiasStrength(level, kind, values, shifts[min(shifts)][1], len(places)))
    return pushed, strengths


@lru_cache(maxsize=2**16)
def find_fold(cluster: str) -> int:
    """Return the fold of a picture, 0 to `FOLDS - 1`, from a hash of its cluster."""
    return int.from_bytes(hashlib.sha256(cluster.encode("utf-8", "surrogatepass")).digest()[:8], "big") % FOLDS


def fit_shift(margins: Sequence[float], truths: Sequence[bool]) -> float:
    """Return what to add to margins so that "above 0 is yes" has the best balanced accuracy; 0 without a true yes and a true no.

    Of several that are as good, the smallest is taken.
    """
    is_yes = np.asarray(truths, dtype=bool)
    if is_yes.all() or not is_yes.any():
        return 0.0
    values = np.asarray(margins, dtype=np.float64)
    steps = np.unique(values)
    shifts = np.concatenate([[0.0, 1 - steps[0], -1 - steps[-1]], -(steps[1:] + steps[:-1]) / 2])
    yes, no = np.sort(values[is_yes]), np.sort(values[~is_yes])
    right_yes = 1 - np.searchsorted(yes, -shifts, side="right") / len(yes)
    right_no = np.searchsorted(no, -shifts, side="right") / len(no)
    balanced = right_yes + right_no
    best = shifts[balanced >= balanced.max() - 1e-12]
    return float(best[np.abs(best).argmin()])


def _fit_group(training: Iterable[AnsweredItem], level: str, kind: str) -> tuple[float, int]:
    """Return the shift of a kind, and how many answers it was fitted on; those of the level where the kind has too few."""
    of_level = [answer for answer in training if answer.item.level == level and _has_margin(answer)]
    of_kind = [answer for answer in of_level if answer.item.kind == kind]
    counts = [sum(says_yes(answer.item.truth) is truth for answer in of_kind) for truth in (True, False)]
    chosen = of_kind if min(counts) >= FEWEST_EACH else of_level
    margins = [answer.margin for answer in chosen if answer.margin is not None]
    return fit_shift(margins, [says_yes(answer.item.truth) is True for answer in chosen]), len(chosen)


def _push(answer: AnsweredItem, shift: float) -> AnsweredItem:
    """Move the margin of an answer, which has one, and turn the answer round where the margin changes its side."""
    before = answer.margin or 0.0
    after = before + shift
    text = answer.text if (before > 0) is (after > 0) else ANSWERS[after > 0]
    return dataclasses.replace(answer, text=text, margin=after)


def _has_margin(answer: AnsweredItem) -> bool:
    return answer.margin is not None and says_yes(answer.item.truth) is not None
