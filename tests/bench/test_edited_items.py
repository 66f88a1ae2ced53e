"""Items and pictures that were edited after a run are noticed by whoever reads the run, and named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import quick_run
from command_line import run_command, run_refused
from PIL import Image
from suites_of_files import OF_FILES

from lvlm_guard.bench.catalogue import catalogue
from lvlm_guard.bench.items import Item
from lvlm_guard.bench.reporting.comparing import compare
from lvlm_guard.bench.reporting.edited import find_edits
from lvlm_guard.bench.running import store, systems
from lvlm_guard.bench.running.edits import PICTURES, find_changed_items
from lvlm_guard.bench.running.manifest import RunPlan, SuiteChoice
from lvlm_guard.bench.running.sealing import CHECK, seal
from lvlm_guard.bench.running.stored_manifest import ADDED, PLACE
from lvlm_guard.bench.suites import pope
from lvlm_guard.bench.suites.chair import Chair
from lvlm_guard.bench.suites.pope import Pope
from lvlm_guard.errors import InputError

OFF = systems.CONTROLS[1:]
QUESTIONS = "coco_pope_random.json"


def plan(data, **changed):
    chosen = {"pope": SuiteChoice(Pope(), "ours")}
    return RunPlan(chosen, systems.build_systems({}, OFF), OFF, data=data, **changed)


def draw(path, colour):
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(path)


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "pope"
    folder.mkdir()
    shutil.copy(Path(__file__).parent / "data" / "pope" / QUESTIONS, folder)
    for image in {item.image for item in Pope().load(folder).items}:
        draw(folder / "val2014" / image, "red")
    return folder


@pytest.fixture
def record(data, tmp_path):
    return quick_run.run(tmp_path / "run", plan(data))


def turn_truth(data):
    """Turn the first truth of the file."""
    path = data / QUESTIONS
    lines = path.read_text().splitlines()
    first = json.loads(lines[0])
    lines[0] = json.dumps({**first, "label": {"yes": "no", "no": "yes"}[first["label"]]})
    path.write_text("\n".join(lines))


def change_picture(data):
    first = min((data / "val2014").iterdir())
    draw(first, "blue")
    return first.name


def age(folder):
    """Turn a run into one that was begun before pictures were hashed."""
    path = folder / "manifest.json"
    manifest = {key: value for key, value in json.loads(path.read_text()).items() if key != CHECK}
    suites = {
        name: {key: value for key, value in suite.items() if key not in ADDED}
        for name, suite in manifest["suites"].items()
    }
    old = seal({**manifest, "suites": suites, "format": 2}, PLACE)
    path.write_text(json.dumps(old))
    (folder / PICTURES).unlink()
    for name in ("items.jsonl", f"answers/{systems.GREEDY}/pope.jsonl", f"costs/{systems.GREEDY}/pope.jsonl"):
        place = {"items.jsonl": "items"}.get(name, name.removesuffix(".jsonl"))
        rows = [json.loads(line) for line in (folder / name).read_text().splitlines()]
        bare = [{key: value for key, value in row.items() if key != CHECK} for row in rows]
        sealed = [seal(row, f"{old[CHECK]}/{place}/{number}") for number, row in enumerate(bare, 1)]
        (folder / name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in sealed))


def test_an_untouched_run_has_nothing_to_say(record, data):
    assert find_edits(record) == []
    assert len(record.read_pictures("pope")) == record.manifest["suites"]["pope"]["pictures"] > 1
    quick_run.run(record.folder, plan(data))


def test_an_edited_truth_is_named_by_the_report(record, data):
    turn_truth(data)
    (line,) = find_edits(record)
    assert line.startswith("pope: 1 of 10 items are not those that the run was put to: random:1 (truth)")


def test_an_edited_picture_is_named_by_the_report(record, data):
    name = change_picture(data)
    (line,) = find_edits(record)
    total = record.manifest["suites"]["pope"]["pictures"]
    assert line.startswith(f"pope: 1 of {total} pictures are not those that the run was put to: {name} (another file)")


def test_rows_that_went_and_came_are_counted(record, data):
    path = data / QUESTIONS
    lines = path.read_text().splitlines()
    added = json.dumps({**json.loads(lines[0]), "question_id": 99})
    path.write_text("\n".join([*lines[1:], added]))
    assert [line.split(". ")[0] for line in find_edits(record)] == [
        "pope: 1 of 10 items are not those that the run was put to: random:1 (gone)",
        "pope: its files hold 1 more items than the run was put to.",
    ]


def test_a_run_of_edited_items_or_pictures_is_not_gone_on_with(record, data):
    before = quick_run.kept(record.folder)
    turn_truth(data)
    with pytest.raises(
        InputError, match=r"1 of 10 items of pope are not those .*: random:1 \(truth\).*Restore the files"
    ):
        quick_run.run(record.folder, plan(data))
    turn_truth(data)
    quick_run.run(record.folder, plan(data))
    name = change_picture(data)
    with pytest.raises(InputError, match=rf"1 of \d+ pictures of pope are not those .*: {name} \(another file\)"):
        quick_run.run(record.folder, plan(data))
    assert quick_run.kept(record.folder) == before


def test_runs_of_other_items_are_not_compared_and_those_of_other_pictures_are_with_a_warning(record, data, tmp_path):
    name = change_picture(data)
    other_pictures = quick_run.run(tmp_path / "pictures", plan(data))
    (line,) = compare(record, other_pictures).warnings
    assert f"pictures are not the same in both runs: {name} (another file)" in line
    assert compare(record, record).warnings == []
    turn_truth(data)
    other_items = quick_run.run(tmp_path / "items", plan(data))
    with pytest.raises(InputError, match=r"other truths \(10 and 10 items; 1 of 10 differ: random:1 \(truth\)\)"):
        compare(record, other_items)


def test_a_run_from_before_pictures_were_hashed_says_so_and_is_gone_on_with(record, data, tmp_path):
    folder = shutil.copytree(record.folder, tmp_path / "old")
    age(folder)
    old = store.read(folder)
    change_picture(data)
    (line,) = find_edits(old)
    assert "before pictures were hashed, so a picture that was edited since would not be found" in line
    assert "nothing tells whether they saw the same" in compare(old, record).warnings[0]
    quick_run.run(folder, plan(data))
    turn_truth(data)
    assert "1 of 10 items" in find_edits(old)[0], "its items were hashed"
    with pytest.raises(InputError, match="1 of 10 items of pope"):
        quick_run.run(folder, plan(data))


def test_files_that_are_elsewhere_are_said_to_tell_nothing(record, data, tmp_path):
    data.rename(tmp_path / "moved")
    assert "nothing tells whether its items are still those of the run" in find_edits(record)[0]
    assert find_edits(record, tmp_path / "moved") == []
    shutil.rmtree(tmp_path / "moved" / "val2014")
    (line,) = find_edits(record, tmp_path / "moved")
    assert "nothing tells whether its pictures are still those of the run" in line


@pytest.mark.parametrize(
    "edit", [lambda lines: lines[1:], lambda lines: [lines[0].replace(b'"sha256": "', b'"sha256": "0'), *lines[1:]]]
)
def test_edited_digests_are_found(record, edit):
    path = record.folder / PICTURES
    path.write_bytes(b"".join(edit(path.read_bytes().splitlines(keepends=True))))
    with pytest.raises(InputError, match=r"pictures\.jsonl"):
        record.read_pictures("pope")


def test_habits_that_are_estimated_otherwise_are_no_edit():
    item = Item("1", "a.jpg", "Is it?", "yes", "object", "is", extra={"habit": "yes", "options": ("a", "b")})
    same = Item("1", "a.jpg", "Is it?", "yes", "object", "is", extra={"habit": None, "options": ["a", "b"], "new": 1})
    other = Item("1", "a.jpg", "Is it?", "yes", "object", "is", extra={"options": ["a", "c"]}, cluster="b")
    assert find_changed_items([item], [same]) == []
    assert find_changed_items([item], [other]) == ["1 (cluster, options)"]


def test_runs_from_before_habits_were_estimated_are_compared_with_those_after(record, data, tmp_path, monkeypatch):
    monkeypatch.setattr(pope, "_with_habits", tuple)
    before = quick_run.run(tmp_path / "before", plan(data))
    digests = [run.manifest["suites"]["pope"]["items_sha256"] for run in (before, record)]
    assert digests[0] != digests[1]
    assert compare(before, record).pairs
    assert find_edits(before) == []


def test_edited_words_that_captions_are_scored_by_are_noticed(tmp_path):
    data = shutil.copytree(Path(__file__).parent / "data" / "chair", tmp_path / "chair")
    for image in {item.image for item in Chair().load(data).items}:
        draw(data / "val2014" / image, "red")
    chosen = RunPlan({"chair": SuiteChoice(Chair(), Chair.parsers[0])}, systems.build_systems({}, OFF), OFF, data=data)
    record = quick_run.run(tmp_path / "run", chosen)
    assert find_edits(record) == []
    with (data / "synonyms.txt").open("a") as file:
        file.write("\nunicorn, unicorns\n")
    (line,) = find_edits(record)
    assert line == "chair: answers are scored by other files than when the run was begun: synonyms.txt (another file)."
    with pytest.raises(InputError, match=r"suites\.chair\.files_sha256\.synonyms\.txt"):
        quick_run.run(tmp_path / "run", chosen)


def test_a_limit_and_pictures_that_were_left_out_are_no_edit(data, tmp_path):
    limited = quick_run.run(tmp_path / "limited", plan(data, limit=4))
    assert find_edits(limited) == []
    min((data / "val2014").iterdir()).unlink()
    skipping = quick_run.run(tmp_path / "skipping", plan(data, missing_pictures="skip"))
    assert find_edits(skipping) == []


def test_the_commands_print_it(record, data, monkeypatch, capsys, tmp_path):
    turn_truth(data)
    told = run_command("bench", "report", record.folder, columns=300)
    assert "Warning: pope: 1 of 10 items are not those that the run was put to" in told
    assert json.loads((record.folder / "results.json").read_text())["edits"]
    assert "edited since the run" in (record.folder / "report.html").read_text()
    other = quick_run.run(tmp_path / "other", plan(data))
    refused = run_refused(monkeypatch, capsys, "bench", "compare", str(record.folder), str(other.folder))
    assert "1 of 10 differ" in refused


@pytest.mark.parametrize("name", OF_FILES)
def test_every_suite_of_files_says_where_its_pictures_are(name, tmp_path):
    suite = catalogue().find(name).suite()
    image = next(item.image for item in suite.load(Path(__file__).parent / "data" / name).items if item.image)
    assert suite.picture_file(tmp_path, image) is None
    path = tmp_path / image
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"a picture")
    assert suite.picture_file(tmp_path, image) == path
