"""`lvlm-guard fit` on labelled pictures: files of labels, what is refused, and a fit on the bundled scenes from end to end."""

from __future__ import annotations

import json
import sys

import pytest
from PIL import Image
from typer.testing import CliRunner

from lvlm_guard import Artefact, Guard, InputError, testbed
from lvlm_guard.cli import app, main
from lvlm_guard.fitting import LabelledObject, LabelledPictures, fit, read_labelled, read_synonyms
from lvlm_guard.testbed.labelled import label_scenes
from lvlm_guard.testbed.world.questions import scored_questions
from lvlm_guard.testbed.world.scenes import scenes


@pytest.fixture
def folder(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (40, 20), "grey").save(tmp_path / name)
    return tmp_path


def lines(folder, *rows):
    path = folder / "labels.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def test_lines_of_labels_are_read(folder):
    things = [{"name": "mug", "box": [0, 0, 10, 20.5], "attributes": ["red"]}, {"name": "dining table"}]
    path = lines(folder, {"image": "a.png", "objects": things}, "", {"image": "b.png"})
    labelled, bare = read_labelled(path)
    assert labelled.objects == (LabelledObject("mug", (0.0, 0.0, 10.0, 20.0), ("red",)), LabelledObject("dining table"))
    assert labelled.picture.size == (40, 20)
    assert bare.objects is None
    assert len(read_labelled(path, count=1)) == 1


def test_instances_as_coco_writes_them_are_read_without_crowds(folder):
    content = {
        "images": [{"id": 7, "file_name": "a.png"}, {"id": 8, "file_name": "b.png"}],
        "categories": [{"id": 1, "name": "dog"}],
        "annotations": [
            {"image_id": 7, "category_id": 1, "bbox": [1, 2, 10, 5], "iscrowd": 0},
            {"image_id": 7, "category_id": 1, "bbox": [0, 0, 40, 20], "iscrowd": 1},
        ],
    }
    path = folder / "instances.json"
    path.write_text(json.dumps(content))
    first, second = read_labelled(path)
    assert first.objects == (LabelledObject("dog", (1.0, 2.0, 11.0, 7.0)),)
    assert second.objects == ()
    path.write_text(json.dumps({"images": []}))
    with pytest.raises(InputError, match=r"not as COCO writes instances \(KeyError: 'categories'\)"):
        read_labelled(path)


def test_a_folder_is_pictures_without_labels(folder):
    assert [each.objects for each in read_labelled(folder)] == [None, None]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((), "holds no pictures"),
        (("{",), "line 1 is not JSON"),
        (({"objects": []},), "line 1: an object"),
        (({"image": "gone.png", "objects": []},), "line 1: The picture"),
        (({"image": "a.png", "objects": [{"box": [0, 0, 1, 1]}]},), "line 1: an object has no name"),
        (
            ({"image": "a.png", "objects": [{"name": "mug", "box": [0, 0, 90, 10]}]},),
            "lies outside its picture of 40 x 20",
        ),
        (({"image": "a.png", "objects": [{"name": "mug", "box": [5, 0, 5, 10]}]},), "or is empty"),
        (({"image": "a.png", "objects": [{"name": "mug", "box": "all"}]},), r"must be \[left, top, right, bottom\]"),
        (({"image": "a.png", "objects": [{"name": "mug", "attributes": "red"}]},), "must be a list of texts"),
        (({"image": "a.png", "objects": {"name": "mug"}},), "objects must be a list"),
        (({"image": "a.png", "objects": []}, {"image": "b.png"}), "labels no object in any of 2 pictures"),
    ],
)
def test_labels_that_cannot_be_used_are_named(folder, rows, message):
    with pytest.raises(InputError, match=message):
        read_labelled(lines(folder, *rows))


def test_a_torn_picture_is_named_with_its_line(folder):
    (folder / "torn.png").write_bytes((folder / "a.png").read_bytes()[:40])
    with pytest.raises(InputError, match=r"line 2: .*torn\.png"):
        read_labelled(lines(folder, {"image": "a.png", "objects": []}, {"image": "torn.png", "objects": []}))


def test_synonyms_are_lists_of_texts_by_name(tmp_path):
    path = tmp_path / "synonyms.json"
    path.write_text('{"bicycle": ["bike"]}')
    assert read_synonyms(path) == {"bicycle": ("bike",)}
    path.write_text('{"bicycle": "bike"}')
    with pytest.raises(InputError, match="must be an object of lists of texts"):
        read_synonyms(path)


def refused(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["lvlm-guard", "fit", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("vti", "--data", "testbed", "--source", "self"), "which have no source: leave --source out"),
        (("vti", "--data", "testbed", "--synonyms", "s.json"), "which have no synonyms"),
        (("evidence", "--data", "gone.jsonl"), "gone.jsonl cannot be read"),
        (("evidence", "--data", "testbed", "--count", "4", "--source", "guess"), "takes no labels from 'guess'"),
        (("evidence", "--data", "testbed", "--count", "4", "--detector", "nothing"), "no import path of a function"),
        (("evidenc", "--data", "testbed"), "There is nothing to fit"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr("lvlm_guard.cli.fitting.CALIBRATION", 4)
    out = tmp_path / "out"
    assert message in refused(monkeypatch, capsys, *arguments, "--model", "testbed", "--out", out)
    assert not out.exists()


def test_a_few_scenes_help_nothing_and_are_refused_with_numbers(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("lvlm_guard.cli.fitting.CALIBRATION", 12)
    printed = refused(
        monkeypatch,
        capsys,
        "evidence",
        "--model",
        "testbed",
        "--data",
        "testbed",
        "--count",
        20,
        "--out",
        tmp_path / "out",
    )
    assert "needs evidence that helps some kind of question" in printed
    assert "questions, of which 40 with different answers are needed" in printed


def answer(guard, processor, asked):
    right = []
    for start in range(0, len(asked), 64):
        batch = asked[start : start + 64]
        content = [
            [{"type": "image", "image": scene.picture}, {"type": "text", "text": question.text}]
            for scene, question in batch
        ]
        inputs = guard.inputs(messages=[[{"role": "user", "content": each}] for each in content])
        output = guard.generate(**inputs, max_new_tokens=1)
        said = processor.batch_decode(output[:, guard.report.answer_start :])
        right += [text.strip() == question.answer for text, (_, question) in zip(said, batch, strict=True)]
    return right


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("source", ["labels", "self"])
def test_a_fit_on_bundled_scenes_wins_back_habit_breaking_answers(tmp_path, source):
    model, processor = testbed.load()
    pictures, calibration = (
        label_scenes("flat" if source == "labels" else "train", 1200),
        label_scenes("calibration", 400),
    )
    artefact = fit("evidence", model, processor, LabelledPictures(pictures, calibration, source=source))
    artefact.save(tmp_path / "evidence.safetensors")
    assert artefact.kind == "patch_evidence"
    assert (
        Artefact.load(tmp_path / "evidence.safetensors", "patch_evidence", model.config).manifest["settings"]["source"]
        == source
    )
    asked = [
        (scene, question)
        for scene in scenes("counterfactual", 150, seed=5) + scenes("iid", 60, seed=5)
        for question in scored_questions(scene)
        if question.level == "attribute" and question.kind == "is_colour"
    ]
    stack = [{"name": "patch_evidence", "params": {"artefact": str(tmp_path / "evidence.safetensors")}}]
    before, after = (answer(Guard(model, processor, each), processor, asked) for each in ([], stack))
    halves = [question.habit == question.answer for _, question in asked]

    def share(right, half):
        of_half = [each for each, is_habitual in zip(right, halves, strict=True) if is_habitual == half]
        return sum(of_half) / len(of_half)

    print({half: (share(before, half), share(after, half)) for half in (True, False)})
    assert share(after, half=False) > share(before, half=False) + 0.03
    assert share(after, half=True) > share(before, half=True) - 0.03


def test_evidence_is_listed(monkeypatch):
    result = CliRunner().invoke(app, ["fit", "--list"])
    assert "patch_evidence" in result.stdout
