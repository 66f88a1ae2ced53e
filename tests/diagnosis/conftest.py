"""The bundled model, and a small profile of it."""

from __future__ import annotations

import pytest

from lvlm_guard import testbed
from lvlm_guard.diagnosis import load_known_items
from lvlm_guard.diagnosis.model.items import BATTERY, deal
from lvlm_guard.diagnosis.model.measuring import measure, measure_swap
from lvlm_guard.diagnosis.model.mix import QuestionMix
from lvlm_guard.diagnosis.model.profile import build_profile, choose_answer_tokens, describe_items
from lvlm_guard.diagnosis.model.structure import inspect_structure
from lvlm_guard.strategy.artefacts import describe_model
from lvlm_guard.testbed.suite import Scenes

BATTERIES = 26
"""As many as a profile holds by default: with ten, a sound model is not told from a broken one."""


@pytest.fixture(scope="session")
def sound():
    """The bundled model and its processor."""
    return testbed.load()


@pytest.fixture(scope="session")
def known():
    """Held-out known items."""
    return load_known_items(Scenes(split="calibration", count=60, seed=77), 72)


@pytest.fixture(scope="session")
def profile(sound):
    """A profile of the default size."""
    model, processor = sound
    items = load_known_items(Scenes(split="calibration", count=640), BATTERIES * 24)
    mix = QuestionMix.of(items, BATTERY)
    batteries, structure = deal(items, mix=mix), inspect_structure(model)
    tokens = choose_answer_tokens(model, processor, batteries)
    measured = [measure(model, processor, structure, battery, tokens, mix) for battery in batteries]
    swaps = [measure_swap(model, processor, structure, battery, mix) for battery in batteries[:3]]
    facts = {"model": "testbed", "failures": [], **describe_model(model), **describe_items(items, batteries, mix)}
    return build_profile(measured, swaps, tokens, facts)
