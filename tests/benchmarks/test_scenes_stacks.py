"""Which strategies are compared, and that each of them does something."""

from dataclasses import fields

import pytest

from lvlm_guard.bench.running import systems
from lvlm_guard.host.plugins import catalogue

FITTED = ("adhh", "nullu", "vti", "patch_evidence", "revise")


@pytest.fixture
def module(script):
    return script("scenes_stacks")


@pytest.fixture
def stacks(module, monkeypatch, tmp_path):
    """The compared stacks, with fits that are only named."""

    def pretend(model, processor, folder, kinds, world):
        files = {kind: folder / f"{kind}.safetensors" for kind in kinds if kind in FITTED}
        for file in files.values():
            file.touch()
        return files, {}

    monkeypatch.setattr(module, "fit_all", pretend)
    return module.stacks(None, None, tmp_path)


def is_neutral(strategy):
    """Whether a strategy has the values under which it does nothing; one that names none, such as an observer, never does anything."""
    neutral = getattr(strategy, "neutral", {})
    return {name: getattr(strategy, name) for name in neutral} == neutral


def test_every_bundled_strategy_is_compared_or_left_out_with_a_reason(module, stacks):
    bundled = {offer.name for offer in catalogue() if offer.distribution == module.DISTRIBUTION}
    compared = {strategy.name for stack in stacks.values() for strategy in stack.strategies}
    assert bundled == compared | set(module.LEFT_OUT) | (set(systems.CONTROLS) & bundled)


def test_no_strategy_is_compared_at_its_neutral_value(stacks):
    assert not [name for name, stack in stacks.items() if any(is_neutral(strategy) for strategy in stack.strategies)]


def test_what_is_left_out_everywhere_does_nothing_by_default(module):
    for name in module.LEFT_OUT:
        strategy = catalogue().find(name)
        defaults = {field.name: field.default for field in fields(strategy)}
        neutral = getattr(strategy, "neutral", {})
        assert {parameter: defaults[parameter] for parameter in neutral} == neutral
