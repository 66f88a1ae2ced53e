"""A whole training: what it refuses, what it resumes, what it leaves behind."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lvlm_guard.errors import InputError
from lvlm_guard.testbed import TestbedError, files
from lvlm_guard.testbed.architectures import ARCHITECTURES
from lvlm_guard.testbed.architectures.llava import LLAVA, build_config
from lvlm_guard.testbed.model import FILES, load
from lvlm_guard.testbed.training import precision, train
from lvlm_guard.testbed.training.train import TrainingPlan, begin, logged_minutes, run
from lvlm_guard.testbed.training.trainer import checkpoint_path


@pytest.fixture(autouse=True)
def _small(monkeypatch) -> None:
    small = replace(LLAVA, build_config=lambda: build_config(hidden=32, layers=1, heads=1, tower_layers=1))
    monkeypatch.setitem(ARCHITECTURES, "llava", small)


def plan(out: Path, **changed) -> TrainingPlan:
    settings = {
        "processes": 1,
        "compiled": False,
        "tower_steps": 2,
        "speaking_steps": 2,
        "tower_batch": 2,
        "speaking_batch": 2,
        "dtype": "float32",
    }
    return TrainingPlan(out, **{**settings, **changed})


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"seed": -1}, "seed must not be negative, got -1"),
        ({"minutes": 0.0}, "minutes must be a number above 0, got 0"),
        ({"minutes": -2.0}, "minutes must be a number above 0, got -2"),
        ({"minutes": float("nan")}, "minutes must be a number above 0, got nan"),
        ({"minutes": float("inf")}, "minutes must be a number above 0, got inf"),
        ({"processes": 0}, "processes must be from 1 to 32"),
        ({"processes": 33}, "processes must be from 1 to 32"),
        ({"device": "gpu"}, "device must be cpu, cuda or cuda:N, got 'gpu'"),
        ({"device": "meta"}, "device must be cpu, cuda or cuda:N, got 'meta'"),
        ({"device": "cuda:x"}, "device must be cpu, cuda or cuda:N"),
    ],
)
def test_a_plan_out_of_range_is_refused(tmp_path: Path, changed: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        TrainingPlan(tmp_path, **changed)


def test_a_gpu_that_is_not_there_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"'cuda': torch sees 0 CUDA devices here.*--device cpu"):
        TrainingPlan(tmp_path, processes=1, device="cuda")


def test_a_gpu_takes_one_process(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert TrainingPlan(tmp_path, processes=1, device="cuda:1").fingerprint["device"] == "cuda"
    with pytest.raises(InputError, match="by one process, got processes 2"):
        TrainingPlan(tmp_path, processes=2, device="cuda")
    with pytest.raises(InputError, match=r"'cuda:2': torch sees 2 CUDA devices"):
        TrainingPlan(tmp_path, processes=1, device="cuda:2")
    assert (train.usual_processes("cuda:0"), train.usual_processes("cpu")) == (1, 2)


def test_more_processes_than_cores_are_fine(tmp_path: Path) -> None:
    assert TrainingPlan(tmp_path, processes=(os.cpu_count() or 1) + 1).processes


def test_half_the_minutes_are_half_the_steps(tmp_path: Path) -> None:
    assert TrainingPlan(tmp_path, minutes=LLAVA.minutes / 2).scaled(4500) == 2250
    assert TrainingPlan(tmp_path, minutes=1e-6).scaled(4500) == 1


def test_a_training_writes_a_model_that_loads(tmp_path: Path) -> None:
    out = tmp_path / "new"
    run(plan(out))
    assert {one.name for one in out.iterdir()} >= {*FILES, "training.json", "training"}
    model, _ = load(folder=out)
    assert model.config.text_config.num_hidden_layers == 1
    first = load_file(out / "model.safetensors")
    run(plan(out))
    again = load_file(out / "model.safetensors")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not [one for one in out.iterdir() if one.name.startswith(".")]


def test_an_interrupted_whole_training_ends_with_the_same_weights(tmp_path: Path, monkeypatch) -> None:
    run(plan(tmp_path / "straight"))
    with monkeypatch.context() as broken:
        broken.setattr(train, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(plan(tmp_path / "interrupted"))
    run(plan(tmp_path / "interrupted"))
    straight, other = (load_file(tmp_path / name / "model.safetensors") for name in ("straight", "interrupted"))
    assert all(torch.equal(straight[name], other[name]) for name in straight)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"seed": 1}, "seed 0, now 1"),
        ({"minutes": LLAVA.minutes * 2}, "tower_steps 2, now 4; speaking_steps 2, now 4"),
        ({"processes": 2}, "processes 1, now 2"),
        ({"compiled": True}, "compiled False, now True"),
        ({"dtype": "bfloat16"}, "dtype float32, now bfloat16"),
    ],
)
def test_a_folder_goes_on_only_with_what_it_was_begun_with(tmp_path: Path, changed: dict, words: str) -> None:
    begin(plan(tmp_path))
    begin(plan(tmp_path))
    with pytest.raises(InputError, match=f"holds a training begun with {words}.*name another folder"):
        begin(plan(tmp_path, **changed))


def test_a_training_goes_on_in_the_dtype_it_was_begun_with(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(train, "faster_dtype", lambda device: "bfloat16")
    assert begin(plan(tmp_path, dtype=None)).dtype == "bfloat16"
    monkeypatch.setattr(train, "faster_dtype", lambda device: "float32")
    assert begin(plan(tmp_path, dtype=None)).dtype == "bfloat16"
    assert begin(plan(tmp_path / "other", dtype=None)).dtype == "float32"


def test_a_training_that_noted_no_dtype_was_in_bfloat16(tmp_path: Path) -> None:
    begin(plan(tmp_path))
    noted = tmp_path / "training" / "plan.json"
    content = json.loads(noted.read_text())
    del content["dtype"]
    noted.write_text(json.dumps(content))
    assert begin(plan(tmp_path, dtype=None)).dtype == "bfloat16"


@pytest.mark.parametrize(("slower", "chosen"), [(100.0, "float32"), (0.5, "bfloat16"), (1.2, "bfloat16")])
def test_a_machine_that_is_slow_in_bfloat16_trains_in_float32(monkeypatch, slower: float, chosen: str) -> None:
    monkeypatch.setattr(precision, "times_slower", lambda dtype: slower)
    assert precision.faster_dtype() == chosen
    assert precision.faster_dtype("cuda") == "bfloat16"


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_both_stages_compute_in_the_dtype_that_was_asked_for(tmp_path: Path, monkeypatch, dtype: str) -> None:
    seen = set()

    def note(self, *arguments: Any, **named: Any) -> None:
        seen.add((named["dtype"], named["enabled"]))
        return entered(self, *arguments, **named)

    entered = torch.autocast.__init__
    monkeypatch.setattr(torch.autocast, "__init__", note)
    run(plan(tmp_path, dtype=dtype))
    assert seen == {(getattr(torch, dtype), dtype == "bfloat16")}


def test_another_device_is_another_training(tmp_path: Path, monkeypatch) -> None:
    begin(plan(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="device cpu, now cuda"):
        begin(plan(tmp_path, device="cuda:0"))


def test_a_folder_without_a_plan_is_gone_on_with_and_gets_one(tmp_path: Path) -> None:
    begin(plan(tmp_path))
    noted = tmp_path / "training" / "plan.json"
    noted.unlink()
    begin(plan(tmp_path, seed=4))
    assert json.loads(noted.read_text())["seed"] == 4


@pytest.mark.parametrize("text", ["{half", "3"])
def test_a_plan_that_cannot_be_read_is_named(tmp_path: Path, text: str) -> None:
    begin(plan(tmp_path))
    (tmp_path / "training" / "plan.json").write_text(text)
    with pytest.raises(TestbedError, match=r"plan\.json cannot be read .*Delete it"):
        begin(plan(tmp_path))


@pytest.mark.parametrize("stage", ["tower", "speaking"])
def test_a_spoilt_checkpoint_is_found_before_any_work(tmp_path: Path, stage: str) -> None:
    begin(plan(tmp_path))
    checkpoint_path(tmp_path / "training", stage).write_bytes(b"PK half an archive")
    with pytest.raises(TestbedError, match=rf"{stage}\.pt cannot be read as a checkpoint.*from its beginning"):
        run(plan(tmp_path))


def test_folders_that_cannot_be_used_are_refused(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"must be a folder, but .*file is a file"):
        begin(plan(tmp_path / "file"))
    with pytest.raises(InputError, match="nowhere does not exist"):
        begin(plan(tmp_path / "nowhere" / "new"))
    monkeypatch.setattr(files.os, "access", lambda *_: False)
    with pytest.raises(InputError, match="cannot be written to"):
        begin(plan(tmp_path / "new"))
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def _no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("part", ["weights", "tokenizer"])
def test_a_model_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch, part: str) -> None:
    run(plan(tmp_path))
    before = {one.name: one.read_bytes() for one in tmp_path.iterdir() if one.is_file()}
    without = replace(ARCHITECTURES["llava"], build_processor=_no_space)
    with monkeypatch.context() as full:
        if part == "weights":
            full.setattr(files.os, "fdopen", _no_space)
        else:
            full.setitem(ARCHITECTURES, "llava", without)
        with pytest.raises(TestbedError, match=r"could not be written: No space left on device"):
            run(plan(tmp_path))
    assert {one.name: one.read_bytes() for one in tmp_path.iterdir() if one.is_file()} == before
    assert {one.name for one in tmp_path.iterdir() if one.is_dir()} == {"training"}


def test_what_a_process_says_reaches_the_caller_as_an_error_of_ours(tmp_path: Path, monkeypatch) -> None:
    def fails(function, args, **_):
        args[-1].put("a checkpoint could not be written.")
        raise train.ProcessException("Process 0 terminated", 0, 1)

    monkeypatch.setattr(train, "spawn", fails)
    with pytest.raises(TestbedError, match="a checkpoint could not be written"):
        run(plan(tmp_path, processes=2))


def test_minutes_are_added_up_over_interruptions_and_half_lines_are_left_out(tmp_path: Path) -> None:
    log = tmp_path / "tower.jsonl"
    lines = [{"step": step, "seconds": seconds} for step, seconds in ((0, 1.0), (20, 60.0), (20, 3.0), (40, 30.0))]
    log.write_text("\n".join(json.dumps(line) for line in lines) + '\n{"step": 60, "sec')
    assert logged_minutes(log) == pytest.approx(1.5)


def test_the_module_says_what_is_wrong_in_one_line(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["train", "--out", str(tmp_path), "--seed", "-3"])
    with pytest.raises(SystemExit) as stopped:
        train.main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "InputError: seed must not be negative, got -3.\n"
