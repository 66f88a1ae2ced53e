"""The arithmetic of AMBER's script: its printed figures of questions, and what a description covers.

Source: `inference.py` and `data/metrics.txt` of junyangwang0410/AMBER.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

_START = 0.001
"""Where the script's counters below a line begin."""
_F1_EPSILON = 0.0001
_EXISTENCE_EPSILON = 0.001
_GROUPS: Mapping[str, tuple[str, ...]] = {
    "existence": ("discriminative-hallucination",),
    "attribute": (
        "discriminative-attribute-state",
        "discriminative-attribute-number",
        "discriminative-attribute-action",
    ),
    "state": ("discriminative-attribute-state",),
    "number": ("discriminative-attribute-number",),
    "action": ("discriminative-attribute-action",),
    "relation": ("discriminative-relation", "relation"),
}
_SECTIONS = {"Generative Task": "generative", "Descriminative Task": "discriminative", "Exsitence": "existence"}
_PRINTED = re.compile(r"([A-Za-z0-9 ]+):\s*(-?\d+(?:\.\d+)?)?\s*$")

Answer = tuple[str, str, bool | None]
"""Type of the question, its truth ("yes" or "no"), and what was said."""


def script_figures(answers: Sequence[Answer]) -> dict[str, float | None]:
    """Compute accuracy, precision, recall and F1 as printed: over all questions, by level and by type of attribute."""
    figures: dict[str, float | None] = {}
    for group, kinds in {"discriminative": (), **_GROUPS}.items():
        selected = [row for row in answers if not kinds or row[0] in kinds]
        starts = len(kinds) if group == "attribute" else 1
        epsilon = _EXISTENCE_EPSILON if group == "existence" else _F1_EPSILON
        figures |= {f"{group}/{name}": value for name, value in _figures(selected, starts * _START, epsilon).items()}
    return figures


def _figures(rows: Sequence[Answer], start: float, epsilon: float) -> dict[str, float]:
    """Compute percentages to one place; F1 is computed from the rounded precision and recall."""
    right = sum(verdict is (truth == "yes") for _, truth, verdict in rows)
    noes = [truth for _, truth, verdict in rows if verdict is False]
    hits, negatives = noes.count("no"), sum(truth == "no" for _, truth, _ in rows)
    precision = round(hits / (len(noes) + start) * 100, 1)
    recall = round(hits / (negatives + start) * 100, 1)
    f1 = 2 * (precision / 100) * (recall / 100) / (precision / 100 + recall / 100 + epsilon)
    return {
        "accuracy": round(right / (len(rows) + start) * 100, 1),
        "precision": precision,
        "recall": recall,
        "f1": round(f1 * 100, 1),
    }


def printed_figures(text: str) -> dict[str, float]:
    """Read the figures that the script printed, by section and name, such as "generative/CHAIR" or "existence/F1"."""
    figures: dict[str, float] = {}
    section = ""
    for line in text.splitlines():
        match = _PRINTED.match(line.strip())
        if match and match[2] is None:
            section = _SECTIONS.get(match[1], match[1].lower())
        elif match and section:
            figures[f"{section}/{match[1]}"] = float(match[2])
    return figures


@dataclass(frozen=True)
class Coverage:
    """What one description adds to the scores.

    Args:
        bad: Nouns that neither are in the image nor go with something that is.
        nouns: Nouns of the vocabulary, repeats included.
        covered: Objects in the image that are named.
        truths: Objects in the image.
        expected: Objects named of those that are absent but expected.
        hallus: Objects absent but expected.
        words: Words of the description.
        covered_objects: The objects in the image that are named.
    """

    bad: int
    nouns: int
    covered: int
    truths: int
    expected: int
    hallus: int
    words: int
    covered_objects: Collection[str] = ()


def coverage(
    nouns: Sequence[str],
    truth: Sequence[str],
    hallu: Sequence[str],
    associated: Mapping[str, Sequence[str]],
    safe: Collection[str],
    words: int,
) -> Coverage:
    """Compare the nouns of a description with the objects in the image.

    A noun covers the object of its own name, else the first it goes with; the script prefers the latter, compares the rest by
    word vectors, and counts an object listed twice as two. Safe words are never wrong, and cover nothing.
    """
    related = set(truth).union(*(associated.get(name, ()) for name in truth))
    select_yes_no = [noun for noun in nouns if noun not in safe]
    bad = [noun for noun in select_yes_no if noun not in related]
    covered = _covered([noun for noun in select_yes_no if noun in related], truth, associated)
    return Coverage(
        bad=len(bad),
        nouns=len(nouns),
        covered=len(covered),
        truths=len(set(truth)),
        expected=len(_covered(bad, hallu, associated)),
        hallus=len(set(hallu)),
        words=words,
        covered_objects=covered,
    )


def _covered(nouns: Sequence[str], objects: Sequence[str], associated: Mapping[str, Sequence[str]]) -> set[str]:
    """Return the objects that the nouns name."""
    covered: set[str] = set()
    for noun in nouns:
        going_with = [name for name in objects if noun in associated.get(name, ())]
        covered.update([noun] if noun in objects else going_with[:1])
    return covered
