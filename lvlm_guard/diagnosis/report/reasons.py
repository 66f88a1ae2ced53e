"""Why a verdict on a model is what it is, in sentences, from the figures that its JSON holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lvlm_guard.diagnosis.model.components import Component
from lvlm_guard.diagnosis.model.judging import FAR_BELOW
from lvlm_guard.diagnosis.report.templating import write_number
from lvlm_guard.diagnosis.verdict import Diagnosis

NEAR = 1.0
"""Beyond the threshold by less, scores have accused heads of sound models."""


def explain(diagnosis: Diagnosis) -> list[str]:
    """Return why the verdict is what it is, a sentence or two each."""
    evidence = diagnosis.evidence
    if evidence.get("failed_checks"):
        return list(_explain_check(diagnosis))
    if diagnosis.profile is None:
        return list(_explain_without_profile(evidence))
    explained = {"none": _explain_none, "unknown": _explain_unknown, "prior": _explain_prior}
    return list(explained.get(diagnosis.culprit.component, _explain_component)(diagnosis))


def list_beyond(diagnosis: Diagnosis) -> list[Component]:
    """Return the components whose score is beyond the threshold, in causal order."""
    scores = diagnosis.evidence.get("scores", {})
    components = [Component.parse(key) for key, score in scores.items() if score > diagnosis.evidence["k"]]
    return sorted(components, key=lambda component: component.order)


def _explain_check(diagnosis: Diagnosis) -> Iterator[str]:
    later = len(diagnosis.evidence["failed_checks"]) - 1
    yield "It failed an exact check. What fails one is wrong whatever the model is for, so it is named before any statistics."
    if later:
        yield f"{later} further component{'' if later == 1 else 's'} failed one; the earliest is named."


def _explain_without_profile(evidence: Mapping[str, Any]) -> Iterator[str]:
    yield "No exact check failed, and without a profile of the sound model nothing else is blamed."
    if evidence.get("knock_out"):
        yield "What silencing components does is a place to look at and no verdict: sound models have such components too."


def _explain_component(diagnosis: Diagnosis) -> Iterator[str]:
    beyond = len(list_beyond(diagnosis))
    if beyond == 1:
        yield "It is the only component beyond the threshold."
    else:
        yield f"It is the earliest of {beyond} components beyond the threshold. A fault grows on its way, so later ones may only pass it on, however high they score."
    gain = diagnosis.evidence.get("knock_out", {}).get(_key(diagnosis))
    if gain is not None:
        yield f"{_say_swap(diagnosis)} Silencing it makes true answers likelier by {write_number(gain['gain'])} nats, more than half of the {write_number(find_loss(diagnosis))} that they lost, so no prior is to blame."
    elif diagnosis.evidence.get("swap_divergence") is not None:
        yield f"{_say_swap(diagnosis)} That is not below half, so no prior is blamed."
    score, threshold = diagnosis.culprit.score, diagnosis.culprit.threshold
    if score is not None and threshold is not None and score < threshold + NEAR:
        yield "A score this near to the threshold has accused sound models too: ask again with other items before you act on it."


def _explain_none(diagnosis: Diagnosis) -> Iterator[str]:
    evidence = diagnosis.evidence
    yield f"No exact check failed, and none of {len(evidence.get('scores', {}))} components is beyond the threshold."
    if find_loss(diagnosis) is not None:
        yield _say_answers(diagnosis)
    yield "A fault that moves nothing on these items is not seen."


def _explain_unknown(diagnosis: Diagnosis) -> Iterator[str]:
    yield f"{_say_answers(diagnosis)} They have become far less likely, and no component says why."
    yield f"No exact check failed, and none of {len(diagnosis.evidence.get('scores', {}))} components is beyond the threshold."
    if diagnosis.evidence.get("swap_divergence") is None:
        yield "How far answers move under another item's picture could not be measured, so no prior can be blamed."
    else:
        yield f"{_say_swap(diagnosis)} That is not below half, so no prior is blamed."


def _explain_prior(diagnosis: Diagnosis) -> Iterator[str]:
    yield _say_answers(diagnosis)
    yield f"{_say_swap(diagnosis)} Below {FAR_BELOW:g} of it, the picture has hardly a say."
    beyond, gains = list_beyond(diagnosis), diagnosis.evidence.get("knock_out", {})
    if not beyond:
        yield "No component is beyond the threshold, so none is guilty."
        return
    gain = gains.get(beyond[0].key)
    loss = write_number(find_loss(diagnosis))
    silenced = (
        ""
        if gain is None
        else f", but silencing it changes true answers by {write_number(gain['gain'])} of the {loss} nats that they lost"
    )
    yield f"The earliest component beyond the threshold is {beyond[0]}{silenced}: it departs because the model learnt otherwise."


def find_loss(diagnosis: Diagnosis) -> float | None:
    """Return how much less likely true answers are than for the sound model, in nats; None where that is not known."""
    current, sound = (diagnosis.evidence.get(name) for name in ("log_probability", "sound_log_probability"))
    return None if current is None or sound is None else max(0.0, sound - current)


def _say_answers(diagnosis: Diagnosis) -> str:
    evidence = diagnosis.evidence
    current, sound = (write_number(evidence.get(name)) for name in ("log_probability", "sound_log_probability"))
    return f"True answers have a log-probability of {current}, and {sound} in the sound model."


def _say_swap(diagnosis: Diagnosis) -> str:
    evidence = diagnosis.evidence
    current, sound = (write_number(evidence.get(name)) for name in ("swap_divergence", "sound_swap_divergence"))
    return f"Another item's picture moves answers by {current} nats, those of the sound model by {sound}."


def _key(diagnosis: Diagnosis) -> str:
    culprit = diagnosis.culprit
    return Component(culprit.component, culprit.layer, culprit.head).key  # type: ignore[arg-type]  # as components are named
