"""Why a group of HallusionBench questions failed: what the language model expects, what the eye sees, or both.

Guan et al., arXiv 2310.14566, the decision tree of its script. There a language model grades answers as right, wrong or unclear and
says whether two of them agree; here both are read from yes and no.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from lvlm_guard.bench.items import Said
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


def shares(said: Sequence[Said], answer: Parser) -> Mapping[str, float | None]:
    """Percent, to four places, of the failed question groups that failed of language, of vision, or of both.

    A group without its original question is left out. All are None where no group failed.
    """
    causes: dict[str, Causes] = {}
    originals = {str(one.item.extra["question"]): one for one in said if one.item.extra["figure_id"] == ORIGINAL}
    for one in said:
        name = str(one.item.extra["question"])
        if name in originals:
            causes[name] = causes.get(name, NONE) | _causes(one, originals[name], answer)
    failed = [found for found in causes.values() if found]
    kinds = {"LH": FROM_LANGUAGE, "VI": FROM_VISION, "Mixed": FROM_BOTH}
    return {name: round(100 * failed.count(kind) / len(failed), 4) if failed else None for name, kind in kinds.items()}


def _causes(one: Said, original: Said, answer: Parser) -> Causes:
    needs_figure = one.item.kind == "VD"
    if one is original:
        if needs_figure:
            return NONE if _right(one, answer) else FROM_VISION
        return NONE if _right(one, answer) is not False else FROM_LANGUAGE
    if _right(one, answer):
        return NONE
    return _of_figure(one, original, answer) if needs_figure else _of_supplement(one, original, answer)


def _of_figure(one: Said, original: Said, answer: Parser) -> Causes:
    """A question that cannot be answered without its figure, gone wrong on another figure than the original."""
    remembered = _right(original, answer) and answer(one.text) is answer(original.text)
    return FROM_BOTH if remembered else FROM_VISION


def _of_supplement(one: Said, original: Said, answer: Parser) -> Causes:
    """A question that was first asked without a figure, gone wrong with one."""
    before, same = _right(original, answer), answer(one.text) is answer(original.text)
    if before is False:
        return FROM_LANGUAGE if same else FROM_BOTH
    ignored = before and same and one.item.extra["visual_input"] == AGAINST_COMMON_SENSE
    return FROM_LANGUAGE if ignored else FROM_VISION


def _right(one: Said, answer: Parser) -> bool | None:
    """Whether the answer is right; None where it is neither yes nor no."""
    heard = answer(one.text)
    return None if heard is None else heard is (one.item.truth == "yes")
