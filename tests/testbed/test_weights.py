"""The bundled model: it is there, it looks, it hallucinates out of habit, and broken files are named."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from lvlm_guard import Stack
from lvlm_guard.bench.scoring.intervals import Interval
from lvlm_guard.testbed import TestbedError, demo, load
from lvlm_guard.testbed.evaluate import Answer, evaluate, score
from lvlm_guard.testbed.measures import CARD_MEASURES, DEMO_MEASURES
from lvlm_guard.testbed.model import WEIGHTS
from lvlm_guard.testbed.world.scenes import scenes


@pytest.fixture(scope="module")
def bundled():
    return load()


def _object_accuracy(model, processor) -> float:
    given = scenes("calibration", 60, seed=21)
    found = evaluate(model.generate, processor, given, captions=False, progress=False)
    return found.scores()["object"]["all"]["balanced_accuracy"]


def test_the_card_states_the_figures_and_the_weights_are_small() -> None:
    card = json.loads((WEIGHTS / "card.json").read_text(encoding="utf-8"))
    assert {"counterfactual", "iid"} <= set(card["scores"])
    assert "2 processes of one thread each" in (WEIGHTS / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert sum(file.stat().st_size for file in WEIGHTS.iterdir()) < 15e6


def test_the_model_answers_from_the_image(bundled) -> None:
    model, processor = bundled
    seeing = _object_accuracy(model, processor)
    weights = [weight for name, weight in model.named_parameters() if "multi_modal_projector" in name]
    kept = [weight.detach().clone() for weight in weights]
    try:
        with torch.no_grad():
            for weight in weights:
                weight.zero_()
        blind = _object_accuracy(model, processor)
    finally:
        with torch.no_grad():
            for weight, value in zip(weights, kept, strict=True):
                weight.copy_(value)
    assert seeing - blind >= 0.15


def test_broken_pairs_are_hallucinated_more_than_strangers(bundled) -> None:
    model, processor = bundled
    found = evaluate(model.generate, processor, scenes("counterfactual", 120, seed=22), captions=False, progress=False)
    objects = found.scores()["object"]
    assert objects["adversarial"]["balanced_accuracy"] < objects["random"]["balanced_accuracy"]


def test_batch_size_does_not_change_the_answers(bundled) -> None:
    model, processor = bundled
    given = scenes("iid", 4, seed=23)
    many, few = (evaluate(model.generate, processor, given, batch=size, progress=False) for size in (32, 3))
    assert many.answers == few.answers


def test_a_guard_that_changes_nothing_shows_no_difference(bundled) -> None:
    model, processor = bundled
    report = SimpleNamespace(forwards=SimpleNamespace(prefill=1.0, decode=1.0), rows_per_forward=1)
    guard = SimpleNamespace(generate=model.generate, report=report, stack=SimpleNamespace(names=("nothing",)))
    result = demo.run(model, processor, guard, 6, progress=False)
    for levels in result.to_dict()["splits"].values():
        assert set(levels) == set(DEMO_MEASURES)
        for compared in levels.values():
            assert compared["plain"] == compared["guarded"]
            assert compared["plain"]["n"] == compared["difference"]["n"] > 0
            assert {compared["difference"][name] for name in ("value", "low", "high")} == {0.0}
    assert result.to_dict()["cost"]["guarded"]["forwards_per_token"] == {"prefill": 1.0, "decode": 1.0}
    console = Console(record=True, width=160, file=io.StringIO())
    demo.render(result, console)
    told = console.export_text()
    assert all(measure.title in told for measure in DEMO_MEASURES.values())


def test_every_broken_habit_is_scored_on_its_own_scenes(bundled) -> None:
    model, processor = bundled
    given = scenes("counterfactual", 9, seed=24)
    answers = evaluate(model.generate, processor, given, progress=False).answers
    level = {scene.name: scene.broken.level for scene in given}
    assert all(answer.broken == level[answer.scene] for answer in answers)
    assert all(answer.level in (level[answer.scene], "caption") for answer in answers)
    described = {answer.scene for answer in answers if answer.level == "caption"}
    assert described == {name for name, broken in level.items() if broken != "relation"}
    for name, wanted in {"object": 3, "attribute": 3, "relation": 3, "caption": 3, "caption_colour": 3}.items():
        assert len(DEMO_MEASURES[name].totals(answers)) == wanted


def test_the_demos_stack_can_be_read() -> None:
    assert Stack.read(demo.STACK).names is not None


def test_missing_and_corrupt_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(TestbedError, match=r"lacks .*model\.safetensors.*testbed\.train"):
        load(folder=tmp_path)
    broken = tmp_path / "broken"
    shutil.copytree(WEIGHTS, broken)
    (broken / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(TestbedError, match="cannot be read"):
        load(folder=broken)


def test_scores_are_computed_from_raw_answers() -> None:
    def answer(level: str, kind: str, truth: str, text: str, negative: str | None = None) -> Answer:
        return Answer("iid-0-0", "iid", level, kind, "", truth, text, negative)

    scores = score(
        [
            answer("object", "existence", "yes", "yes"),
            answer("object", "existence", "no", "yes", "adversarial"),
            answer("object", "existence", "no", "no", "random"),
            answer("attribute", "colour", "red", "red"),
            answer("attribute", "is_colour", "no", "yes"),
            answer("relation", "relation", "yes", "yes"),
            answer("relation", "choice", "left", "right"),
            answer("relation", "choice", "left", "it is left ."),
            answer("relation", "vertical", "no", "yes"),
            answer("caption", "caption", "there is a red mug .", "there is a blue mug and a red pan ."),
        ]
    )
    assert scores["object"]["adversarial"]["balanced_accuracy"] == 0.5
    assert scores["object"]["random"]["balanced_accuracy"] == 1.0
    assert scores["object"]["all"]["accuracy"] == pytest.approx(2 / 3)
    assert scores["attribute"]["colour"]["accuracy"] == 1.0
    assert scores["attribute"]["is_colour"]["accuracy"] == 0.0
    assert scores["relation"]["relation"] == {"accuracy": 1.0, "n": 1}
    assert scores["relation"]["choice"] == {"accuracy": 0.5, "n": 2}
    assert scores["relation"]["vertical"] == {"accuracy": 0.0, "n": 1}
    assert (scores["caption"]["chair_s"], scores["caption"]["chair_i"], scores["caption"]["recall"]) == (1.0, 0.5, 1.0)
    assert scores["caption"]["miscoloured"] == 1.0


def test_measures_choose_their_own_answers() -> None:
    def answer(level: str, kind: str, truth: str, text: str, broken: str | None = None) -> Answer:
        return Answer("counterfactual-0-0", "counterfactual", level, kind, "", truth, text, broken=broken)

    told = [
        answer("relation", "relation", "yes", "no"),
        answer("relation", "choice", "left", "left"),
        answer("relation", "vertical", "yes", "yes"),
        answer("attribute", "colour", "red", "red"),
        answer("caption", "caption", "a red mug .", "a blue mug and a red pan .", "attribute"),
        answer("caption", "caption", "a red mug and a blue egg .", "a red mug and a blue pan .", "object"),
    ]
    found = {name: one.totals(told).tolist() for name, one in CARD_MEASURES.items()}
    assert found["relation"] == [[1.0, 2.0]]
    assert (found["left_right"], found["choice"], found["vertical"]) == ([[0.0, 1.0]], [[1.0, 1.0]], [[1.0, 1.0]])
    assert found["caption"] == [[1.0, 2.0]]
    assert found["caption_recall"] == [[1.0, 2.0]]
    assert found["caption_colour"] == [[1.0, 1.0]]
    assert [one.level for one in DEMO_MEASURES.values()] == ["object", "attribute", "relation", *["caption"] * 4]


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.01, 0.2, "better"), (-0.2, -0.01, "worse"), (-0.1, 0.1, "unclear"), (0, 0, "unclear")],
)
def test_a_difference_is_called_by_its_interval(low: float, high: float, verdict: str) -> None:
    change = Interval((low + high) / 2, low, high)
    assert DEMO_MEASURES["object"].verdict(change) == verdict
    opposite = {"better": "worse", "worse": "better", "unclear": "unclear"}
    assert DEMO_MEASURES["caption"].verdict(change) == opposite[verdict]
