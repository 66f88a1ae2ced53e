"""The bundled model: it is there, it looks, it hallucinates out of habit, and broken files are named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from lvlm_guard.testbed import TestbedError, load
from lvlm_guard.testbed.figures import DEMO_FIGURES
from lvlm_guard.testbed.model import WEIGHTS
from lvlm_guard.testbed.running import answer
from lvlm_guard.testbed.scoring import CAPTION
from lvlm_guard.testbed.suite import Scenes


@pytest.fixture(scope="module")
def bundled():
    return load()


def _answers(model, processor, suite: Scenes, **options):
    return answer(model, processor, {"scenes": suite}, progress=False, **options)["scenes"]["greedy"]


def _balanced_accuracy(model, processor, suite: Scenes, name: str = "balanced_object") -> float:
    measure = next(measure for measure in suite.measures("ours") if measure.name == name)
    return measure.value(_answers(model, processor, suite))


def test_the_card_states_the_figures_and_the_weights_are_small() -> None:
    card = json.loads((WEIGHTS / "card.json").read_text(encoding="utf-8"))
    assert {"counterfactual", "iid"} <= set(card["scores"])
    assert "2 processes of one thread each" in (WEIGHTS / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert sum(file.stat().st_size for file in WEIGHTS.iterdir()) < 15e6


@pytest.mark.slow
def test_the_model_answers_from_the_image(bundled) -> None:
    model, processor = bundled
    seeing = _balanced_accuracy(model, processor, Scenes("calibration", 60, 21, captions=0))
    weights = [weight for name, weight in model.named_parameters() if "multi_modal_projector" in name]
    kept = [weight.detach().clone() for weight in weights]
    try:
        with torch.no_grad():
            for weight in weights:
                weight.zero_()
        blind = _balanced_accuracy(model, processor, Scenes("calibration", 60, 21, captions=0))
    finally:
        with torch.no_grad():
            for weight, value in zip(weights, kept, strict=True):
                weight.copy_(value)
    assert seeing - blind >= 0.15


@pytest.mark.slow
def test_broken_pairs_are_hallucinated_more_than_strangers(bundled) -> None:
    answers = _answers(*bundled, Scenes(count=120, seed=22, captions=0))
    values = {measure.name: measure.value(answers) for measure in Scenes().measures("ours")}
    assert values["balanced_adversarial"] < values["balanced_random"]


def test_batch_size_does_not_change_the_answers(bundled) -> None:
    many, few = (
        {said.item.id: said.text for said in _answers(*bundled, Scenes("iid", 4, 23), batch=size)} for size in (32, 3)
    )
    assert many == few


def test_every_broken_habit_is_scored_on_its_own_scenes(bundled) -> None:
    suite = Scenes(count=9, seed=24)
    answers = _answers(*bundled, suite)
    level = {drawn.name: drawn.broken.level for drawn in map(suite.draw, range(100))}
    assert all(said.item.extra["broken"] == level[said.item.image] for said in answers)
    breaking = [said.item for said in answers if said.item.extra["habit"] not in (None, said.item.truth)]
    assert all(item.level == level[item.image] for item in breaking if item.kind != CAPTION)
    assert {item.image for item in breaking} == {drawn.name for drawn in map(suite.draw, range(9))}
    for name in ("object", "attribute", "relation"):
        assert len(DEMO_FIGURES[f"{name}_breaking"].measure.totals(answers)) == 3
        assert len(DEMO_FIGURES[name].measure.totals(answers)) > 3


def test_missing_and_corrupt_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(TestbedError, match=r"lacks .*model\.safetensors.*testbed\.train"):
        load(folder=tmp_path)
    broken = tmp_path / "broken"
    shutil.copytree(WEIGHTS, broken)
    (broken / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(TestbedError, match="cannot be read"):
        load(folder=broken)
