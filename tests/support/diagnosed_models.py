"""Diagnoses of models made by hand, with names that mean harm: of a large model, without a profile, of a failed check, of a prior."""

from __future__ import annotations

import random
from typing import Any

from lvlm_guard.diagnosis import Culprit, Diagnosis, ProfileFacts

NASTY = "mine/<script>alert(1)</script>\u202e&\"'"
PROFILE = ProfileFacts("0123456789abcdef" * 4, 624, 26)
PASSED = {
    "pixels": {"size": 0.0, "allowed": 0.0, "at": "pixels", "failed": []},
    "sums": {"size": 0.121, "allowed": 1.0, "at": "residual.1", "failed": []},
    "logits": {"size": 0.25, "allowed": 1.0, "at": "output", "failed": []},
}
HEAD = Culprit("head", "decoder", 3, 1, 41.1875, 3.0)


def draw_scores(layers: int, heads: int, tower: int) -> dict[str, float]:
    """Return scores of a sound model, below the threshold of 3."""
    rng = random.Random(0)
    keys = ["patches", *(f"tower.{layer}" for layer in range(tower)), "projector"]
    for layer in range(layers):
        keys += [f"image_mass.{layer}", *(f"head.{layer}.{head}" for head in range(heads))]
        keys += [f"attention.{layer}", f"mlp.{layer}"]
    return {key: round(rng.uniform(-1.5, 2.5), 4) for key in [*keys, "output"]}


def make_model_diagnosis(layers: int = 4, heads: int = 2, tower: int = 3, **changes: Any) -> Diagnosis:
    """Return a diagnosis that names head 1 of layer 3; `evidence` changes single figures, other changes take whole arguments."""
    beyond = {"head.3.1": 41.1875, "mlp.3": 4.25, "output": 120.5}
    evidence: dict[str, Any] = {
        "model": NASTY, "split": "scenes:count=60", "sound_model": "base/sound", "sound_split": "scenes", "items": 48, "k": 3.0,
        "checks": PASSED, "failed_checks": {}, "scores": {**draw_scores(layers, heads, tower), **beyond},
        "swap_divergence": 0.0625, "sound_swap_divergence": 0.21875, "log_probability": -1.5, "sound_log_probability": -0.25,
        "knock_out": {"head.3.1": {"gain": 0.875, "way": "zeroed"}},
    }  # fmt: skip
    values: dict[str, Any] = {
        "culprit": HEAD, "runner_up": Culprit("mlp", "decoder", 3, None, 4.25, 3.0), "profile": PROFILE, "partial": (),
    }  # fmt: skip
    evidence |= changes.pop("evidence", {})
    return Diagnosis(**{**values, **changes, "evidence": evidence})


def make_sound() -> Diagnosis:
    """Return a diagnosis that finds nothing."""
    figures = {"scores": draw_scores(4, 2, 3), "swap_divergence": None, "log_probability": -0.25, "knock_out": {}}
    none = Culprit("none", "none", None, None, 2.4875, 3.0)
    return make_model_diagnosis(culprit=none, runner_up=None, evidence=figures)


def make_unprofiled() -> Diagnosis:
    """Return a diagnosis without a profile: gains, and no verdict."""
    heads = [f"head.{layer}.{head}" for layer in range(4) for head in range(2)]
    keys = [*heads, *(f"mlp.{layer}" for layer in range(4))]
    gains = {key: {"gain": 0.0375 - 0.01 * at, "way": "averaged"} for at, key in enumerate(keys)}
    unknown = {"sound_model": None, "sound_split": None, "sound_swap_divergence": None, "sound_log_probability": None}
    figures = {"scores": {}, "swap_divergence": None, "knock_out": gains, **unknown}
    return make_model_diagnosis(
        culprit=Culprit("unknown", "unknown"),
        runner_up=Culprit("head", "decoder", 0, 0, 0.0375, 0.02),
        profile=None,
        partial=("profile: without one, only what fails an exact check is blamed.", f"tower: {NASTY} has none."),
        evidence=figures,
    )


def make_failed() -> Diagnosis:
    """Return a diagnosis of a weak mask in two layers, and of a check that the sound model fails too."""
    masks = {"size": 2.1875, "allowed": 0.0, "at": "image_mass.2", "failed": ["image_mass.2", "image_mass.3"]}
    tokens = {"size": 0.5, "allowed": 0.0, "at": "decoding", "failed": []}
    figures = {
        "checks": {**PASSED, "image_masks": masks, "tokens": tokens}, "failed_checks": {"image_mass.2": 2.1875, "image_mass.3": 1.5},
        "knock_out": {}, "swap_divergence": None,
    }  # fmt: skip
    return make_model_diagnosis(
        culprit=Culprit("image_mass", "attention", 2, None, 2.1875, 0.0),
        runner_up=Culprit("image_mass", "attention", 3, None, 1.5, 0.0),
        evidence=figures,
    )


def make_prior() -> Diagnosis:
    """Return a diagnosis of a model that learnt to answer without the picture."""
    culprit = Culprit("prior", "prior", None, None, 0.0625, 0.109375)
    return make_model_diagnosis(
        culprit=culprit, runner_up=None, evidence={"scores": draw_scores(4, 2, 3), "knock_out": {}}
    )


CASES = {
    "head": make_model_diagnosis,
    "sound": make_sound,
    "no profile": make_unprofiled,
    "check": make_failed,
    "prior": make_prior,
    "large": lambda: make_model_diagnosis(32, 32, 24),
}
"""What a page may be about."""
