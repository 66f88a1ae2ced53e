"""Why a doubtful word may have been said, as far as one answer about one picture tells."""

from __future__ import annotations

import math
from collections.abc import Iterator

from lvlm_guard.diagnosis.answer.result import Cause, WordDiagnosis
from lvlm_guard.diagnosis.verdict import Diagnosis

WEAK = math.log(2)
"""Nats by which the picture makes a word likelier, at most, where its evidence counts as weak: a factor of two."""
SOUND = ("none", "unknown")


def find_causes(word: WordDiagnosis, fault: Diagnosis | None) -> tuple[Cause, ...]:
    """Return what may have led to a doubtful word, at least `unknown`.

    Args:
        word: The word.
        fault: The diagnosis of the model, where one was passed.
    """
    return tuple(_list_causes(word, fault)) or (Cause("unknown", "Nothing that was measured explains it."),)


def _list_causes(word: WordDiagnosis, fault: Diagnosis | None) -> Iterator[Cause]:
    if not word.is_choice:
        yield Cause(
            "decoding",
            f"It was not the likeliest here: the model would have gone on with {word.choice!r}. Sampling, or another writer, chose it.",
        )
    if word.evidence is not None and word.evidence <= 0:
        yield Cause("weak evidence", f"A fitted head sees no sign of it in the picture: log-odds {word.evidence:.2f}.")
    elif word.evidence is None and word.log_ratio is not None and word.log_ratio <= WEAK:
        yield Cause(
            "weak evidence", f"The picture hardly makes it likelier: {word.log_ratio:+.2f} nats against no picture."
        )
    if word.is_image_free_choice:
        chance = math.exp(word.image_free_log_probability or 0.0)
        yield Cause("prior", f"Without the picture the model says the same, with probability {chance:.2f}.")
    if fault is not None and fault.culprit.component not in SOUND:
        yield Cause("model fault", f"{_name(fault)} of this model was found to be at fault; it may touch any word.")


def _name(fault: Diagnosis) -> str:
    culprit = fault.culprit
    place = "".join(
        f", {name} {number}"
        for name, number in (("layer", culprit.layer), ("head", culprit.head))
        if number is not None
    )
    return f"Component {culprit.component!r}{place}"
