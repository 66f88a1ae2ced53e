"""Training can be interrupted, repeats itself, and learns."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch

from lvlm_guard.testbed import TestbedError, files
from lvlm_guard.testbed.architectures.llava import LLAVA, build_config, build_model
from lvlm_guard.testbed.training.language_stage import LanguageStage
from lvlm_guard.testbed.training.trainer import Stage, TrainingRun, checkpoint_path, rate_at, train
from lvlm_guard.testbed.training.vision_stage import VisionStage


def _tower() -> Stage:
    return VisionStage(LLAVA, _tiny(), batch=4, seed=1)


def _speaking() -> Stage:
    return LanguageStage(LLAVA, _tiny(), batch=2, seed=1, steps=5)


def _tiny():
    return build_model(build_config(hidden=32, layers=1, heads=1, tower_layers=1), seed=1)


@pytest.mark.parametrize("build", [_tower, _speaking])
def test_an_interrupted_training_ends_with_the_weights_of_an_uninterrupted_one(build, tmp_path: Path) -> None:
    results = []
    for name, stops in (("straight", [None]), ("interrupted", [2, 3, None])):
        folder = tmp_path / name
        folder.mkdir()
        for stop in stops:
            stage = build()
            train(stage, TrainingRun(folder, steps=5, stop_after=stop))
        results.append(stage.state_dict())
    straight, interrupted = results
    assert straight.keys() == interrupted.keys()
    assert all(torch.equal(straight[name], interrupted[name]) for name in straight)


def _no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one(tmp_path: Path, monkeypatch) -> None:
    train(_tower(), TrainingRun(tmp_path, steps=4, stop_after=2))
    before = checkpoint_path(tmp_path, "tower").read_bytes()
    with monkeypatch.context() as full:
        full.setattr(files.os, "fdopen", _no_space)
        with pytest.raises(TestbedError, match=r"tower\.pt could not be written: No space left on device.*Make room"):
            train(_tower(), TrainingRun(tmp_path, steps=4))
    assert checkpoint_path(tmp_path, "tower").read_bytes() == before
    assert {one.name for one in tmp_path.iterdir()} == {"tower.pt", "tower.jsonl"}
    train(_tower(), TrainingRun(tmp_path, steps=4))
    assert torch.load(checkpoint_path(tmp_path, "tower"), weights_only=True)["step"] == 4


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def _nonsense(path: Path) -> None:
    path.write_bytes(b"no checkpoint")


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _of_another_model(path: Path) -> None:
    other = VisionStage(LLAVA, build_model(build_config(hidden=64, layers=1, heads=1, tower_layers=1), 1), 4, 1)
    torch.save({"step": 1, "stage": other.state_dict(), "optimizer": {}}, path)


@pytest.mark.parametrize("spoil", [_truncated, _nonsense, _empty, _of_another_model])
def test_a_spoilt_checkpoint_is_named_with_the_way_out(spoil, tmp_path: Path) -> None:
    train(_tower(), TrainingRun(tmp_path, steps=2))
    path = checkpoint_path(tmp_path, "tower")
    spoil(path)
    with pytest.raises(
        TestbedError, match=r"tower\.pt .*Delete .*tower\.pt to train the stage 'tower' from its beginning"
    ):
        train(_tower(), TrainingRun(tmp_path, steps=4))


def test_the_tower_stage_learns(tmp_path: Path) -> None:
    train(_tower(), TrainingRun(tmp_path, steps=61))
    logged = [json.loads(line) for line in (tmp_path / "tower.jsonl").read_text().splitlines()]
    assert logged[-1]["loss"] < 0.7 * logged[0]["loss"]


def test_the_second_stage_leaves_the_tower_alone(tmp_path: Path) -> None:
    stage = _speaking()
    before = {name: weight.clone() for name, weight in stage.state_dict().items()}
    train(stage, TrainingRun(tmp_path, steps=2))
    changed = {name for name, weight in stage.state_dict().items() if not torch.equal(weight, before[name])}
    assert changed
    assert not any("vision_tower" in name for name in changed)
    assert any("multi_modal_projector" in name for name in changed)


def test_the_learning_rate_rises_stays_and_falls_to_almost_nothing() -> None:
    rates = [rate_at(step, 1000) for step in range(1000)]
    assert rates[0] == pytest.approx(1 / 40)
    assert rates[100] == rates[600] == 1.0
    assert rates[999] == pytest.approx(1 / 300)
