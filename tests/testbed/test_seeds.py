"""The script that trains further seeds: what it makes, notes, resumes and refuses."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lvlm_guard.errors import InputError
from lvlm_guard.testbed.architectures import ARCHITECTURES
from lvlm_guard.testbed.architectures.llava import build_config as small_llava
from lvlm_guard.testbed.architectures.qwen2_vl import build_config as small_qwen
from lvlm_guard.testbed.card import measuring as card
from lvlm_guard.testbed.training import train

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "seeds.py"


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("seeds", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "seeds", module)  # where dataclasses look their annotations up
    spec.loader.exec_module(module)
    small = {
        "llava": lambda: small_llava(hidden=32, layers=1, heads=1, tower_layers=1),
        "qwen2_vl": lambda: small_qwen(hidden=32, layers=1, heads=2, groups=1, vision_width=16, tower_layers=1),
    }
    for name, config in small.items():
        monkeypatch.setitem(ARCHITECTURES, name, replace(ARCHITECTURES[name], build_config=config))
    plan = train.TrainingPlan
    few = {"tower_batch": 2, "speaking_batch": 2, "compiled": False}
    monkeypatch.setattr(module.train, "TrainingPlan", lambda *given, **more: plan(*given, **more, **few))
    monkeypatch.setattr(module.card, "write_card", lambda folder, _: [_touch(folder, name) for name in _CARD])
    return module


_CARD = ("card.json", "MODEL_CARD.md")


def _touch(folder: Path, name: str) -> None:
    (folder / name).write_text("{}")


def _make(script, out: Path, *names: tuple[str, int], minutes: float = 0.01) -> dict:
    script.make(out, [script.Made(*one) for one in names], minutes, processes=1, scenes=6)
    return json.loads((out / "manifest.json").read_text())


def test_models_are_made_one_after_another_and_noted_with_what_they_were_made_of(script, tmp_path: Path) -> None:
    noted = _make(script, tmp_path / "new", ("llava", 3), ("llava", 4), ("qwen2_vl", 0))
    assert set(noted) == {"llava-3", "llava-4", "qwen2_vl-0"}
    assert len({one["sha256"] for one in noted.values()}) == 3
    for name, one in noted.items():
        weights = (tmp_path / "new" / name / "model.safetensors").read_bytes()
        assert one["sha256"] == hashlib.sha256(weights).hexdigest()
        assert f"{one['arch']}-{one['seed']}" == name
        assert (one["asked_minutes"], one["card_scenes"], one["tower_steps"]) == (0.01, 6, 1)
        assert {"python", "torch", "transformers", "numpy"} <= set(one["versions"])


def test_run_again_it_measures_only_what_is_missing(script, tmp_path: Path, monkeypatch) -> None:
    first = _make(script, tmp_path, ("llava", 3))
    measured = []
    monkeypatch.setattr(card, "write_card", lambda folder, _: measured.append(folder.name))
    assert _make(script, tmp_path, ("llava", 3), ("qwen2_vl", 0))["llava-3"] == first["llava-3"]
    assert measured == ["qwen2_vl-0"]
    (tmp_path / "llava-3" / "card.json").unlink()
    _make(script, tmp_path, ("llava", 3))
    assert measured == ["qwen2_vl-0", "llava-3"]


def test_another_length_is_refused_in_the_same_folder(script, tmp_path: Path) -> None:
    _make(script, tmp_path, ("llava", 3))
    with pytest.raises(InputError, match="tower_steps 1, now 100"):
        _make(script, tmp_path, ("llava", 3), minutes=1.0)
