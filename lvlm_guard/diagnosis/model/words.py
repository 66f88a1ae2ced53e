"""A verdict on a model in words, and its components as rows."""

from __future__ import annotations

import csv
import io
from typing import Any

from lvlm_guard.diagnosis.model.components import Component
from lvlm_guard.diagnosis.verdict import Culprit, Diagnosis

MEANINGS = {
    "pixels": "The tower does not get the picture that the processor made, or one unlike those of the sound model",
    "patches": "What enters the layers of the vision tower departs from the sound model",
    "tower": "The vision tower departs from the sound model",
    "projector": "What enters the decoder in place of the image departs from the sound model",
    "image_mass": "Attention to the image departs from the sound model",
    "head": "An attention head departs from the sound model",
    "attention": "An attention block departs from the sound model, or attends to what is hidden from it",
    "mlp": "A feed-forward block departs from the sound model",
    "residual": "Something other than its own blocks is added to the residual stream",
    "output": "The logits are not what the head makes of the last layer, or depart from the sound model",
    "decoding": "Generated tokens are not the likeliest: generation settings sample, or change the logits",
    "prior": "Answers hardly depend on the picture, and no component is guilty: the model learnt to answer without it",
    "none": "Nothing is wrong that these items show",
    "unknown": "No component can be named",
}
UNMEASURED = "unmeasured"
"""A check that failed by how the component runs at all, without a size."""
FIELDS = ("component", "layer", "head", "score", "threshold", "failed_check", "gain")


def describe(diagnosis: Diagnosis) -> str:
    """Return a verdict as a few lines of text."""
    culprit = diagnosis.culprit
    lines = [f"{name_culprit(culprit)}: {MEANINGS.get(culprit.component, culprit.component)}{_figures(culprit)}."]
    if diagnosis.level not in ("none", "unknown"):
        lines.append(f"Level: {diagnosis.level}. Stage: {culprit.stage}.")
    if diagnosis.runner_up is not None:
        label = "Look next at" if diagnosis.profile is None else "Next"
        lines.append(f"{label}: {name_culprit(diagnosis.runner_up)}{_figures(diagnosis.runner_up)}.")
    return "\n".join([*lines, *(f"Not judged: {reason}" for reason in diagnosis.partial)])


def name_culprit(culprit: Culprit) -> str:
    """Return what a verdict names, in words."""
    if culprit.component in ("none", "unknown", "prior"):
        return culprit.component
    return str(Component(culprit.component, culprit.layer, culprit.head))  # type: ignore[arg-type]  # as components are named


def _figures(culprit: Culprit) -> str:
    if culprit.score is None or culprit.threshold is None:
        return ""
    return f" ({culprit.score:.3g}, threshold {culprit.threshold:.3g})"


def write_rows(diagnosis: Diagnosis) -> str:
    """Return CSV with a row for each component, in causal order."""
    evidence = diagnosis.evidence
    scores, checks, gains = (evidence.get(name, {}) for name in ("scores", "failed_checks", "knock_out"))
    components = sorted(map(Component.parse, {*scores, *checks, *gains}), key=lambda component: component.order)
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_row(component, diagnosis, scores, checks, gains) for component in components)
    return text.getvalue()


def _row(component: Component, diagnosis: Diagnosis, scores: Any, checks: Any, gains: Any) -> dict[str, Any]:
    key = component.key
    return {
        "component": component.name,
        "layer": component.layer,
        "head": component.head,
        "score": scores.get(key),
        "threshold": diagnosis.evidence.get("k") if key in scores else None,
        "failed_check": UNMEASURED if key in checks and checks[key] is None else checks.get(key),
        "gain": gains[key]["gain"] if key in gains else None,
    }
