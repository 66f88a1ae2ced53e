"""Why answers to HallusionBench failed: what the language model expects, what the eye sees, or both.

Guan et al., arXiv 2310.14566, the decision tree of its script. There a language model grades answers as right, wrong or unclear and
says whether two of them agree; here both are read from yes and no.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

from lvlm_guard.bench.items import AnsweredItem
from lvlm_guard.bench.scoring.parsers import Parser

LANGUAGE, VISION = "language", "vision"
Causes: TypeAlias = frozenset[str]
NONE: Causes = frozenset()
FROM_LANGUAGE: Causes = frozenset({LANGUAGE})
FROM_VISION: Causes = frozenset({VISION})
FROM_BOTH: Causes = FROM_LANGUAGE | FROM_VISION
ORIGINAL = "0"
"""The figure that a question was first asked about; for questions that a figure would supplement, none."""

AGAINST_COMMON_SENSE = "2"
"""`visual_input` of a figure that was edited."""


_KINDS = {"LH": FROM_LANGUAGE, "VI": FROM_VISION, "Mixed": FROM_BOTH}


def shares_of_answers(answers: Sequence[AnsweredItem], answer: Parser) -> dict[str, float | None]:
    """Return the percentages, to four places, of failed answers that failed through language, vision, or both.

    This is what the script prints. An answer to a group without its original question, on which the script stops, is left
    out. All are None where nothing failed.
    """
    return _shares([causes for _, causes in _find_causes(answers, answer)])


def shares_of_groups(answers: Sequence[AnsweredItem], answer: Parser) -> dict[str, float | None]:
    """Return the percentages, to four places, of failed question groups, the causes of a group taken together.

    The script counts these as well, and does not print them. A group without its original question is left out. All are
    None where no group failed.
    """
    by_group: dict[str, Causes] = {}
    for name, causes in _find_causes(answers, answer):
        by_group[name] = by_group.get(name, NONE) | causes
    return _shares(by_group.values())


def _shares(causes: Iterable[Causes]) -> dict[str, float | None]:
    failed = [cause for cause in causes if cause]
    return {name: round(100 * failed.count(kind) / len(failed), 4) if failed else None for name, kind in _KINDS.items()}


def _find_causes(answers: Sequence[AnsweredItem], answer: Parser) -> list[tuple[str, Causes]]:
    """Return the group of each answer and why the answer failed; no cause where it did not."""
    originals = {
        str(answered.item.extra["question"]): answered
        for answered in answers
        if answered.item.extra["figure_id"] == ORIGINAL
    }
    named = [(str(answered.item.extra["question"]), answered) for answered in answers]
    return [(name, _causes(answered, originals[name], answer)) for name, answered in named if name in originals]


def _causes(answered: AnsweredItem, original: AnsweredItem, answer: Parser) -> Causes:
    needs_figure = answered.item.kind == "VD"
    if answered is original:
        if needs_figure:
            return NONE if _right(answered, answer) else FROM_VISION
        return NONE if _right(answered, answer) is not False else FROM_LANGUAGE
    if _right(answered, answer):
        return NONE
    return _of_figure(answered, original, answer) if needs_figure else _of_supplement(answered, original, answer)


def _of_figure(answered: AnsweredItem, original: AnsweredItem, answer: Parser) -> Causes:
    """Return why a question that needs its figure failed on another figure than the original."""
    remembered = _right(original, answer) and answer(answered.text) is answer(original.text)
    return FROM_BOTH if remembered else FROM_VISION


def _of_supplement(answered: AnsweredItem, original: AnsweredItem, answer: Parser) -> Causes:
    """Return why a question that was first asked without a figure failed with one."""
    before, same = _right(original, answer), answer(answered.text) is answer(original.text)
    if before is False:
        return FROM_LANGUAGE if same else FROM_BOTH
    ignored = before and same and answered.item.extra["visual_input"] == AGAINST_COMMON_SENSE
    return FROM_LANGUAGE if ignored else FROM_VISION


def _right(answered: AnsweredItem, answer: Parser) -> bool | None:
    """Return whether the answer is right; None where it is neither yes nor no."""
    reading = answer(answered.text)
    return None if reading is None else reading is (answered.item.truth == "yes")
