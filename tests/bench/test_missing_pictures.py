"""Pictures that are missing or broken are found before a run, and their items left out only where that is wanted."""

import json
import shutil
from pathlib import Path

import pytest
import quick_run
from PIL import Image
from suites_of_files import OF_FILES

from lvlm_guard.bench.catalogue import catalogue
from lvlm_guard.bench.reporting.page import facts, render
from lvlm_guard.bench.reporting.results import score
from lvlm_guard.bench.running import runner, store, systems
from lvlm_guard.bench.running.manifest import RunPlan, SuiteChoice
from lvlm_guard.cli.bench_tables import notes
from lvlm_guard.errors import InputError

DATA = Path(__file__).parent / "data"
FOLDERS = {
    "pope": "val2014", "chair": "val2014", "sugarcrepe": "val2017", "amber": "image", "reefknot": "VG_100K",
    "hallusionbench": "hallusion_bench", "mme": "",
}  # fmt: skip
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
HTML = b"\n<!DOCTYPE html><html><head><title>Sign in</title></head></html>"


def plan(name, data, **changed):
    suite = catalogue().find(name).suite()
    alone = systems.build_systems({}, systems.CONTROLS[1:])
    return RunPlan({name: SuiteChoice(suite, suite.parsers[0])}, alone, systems.CONTROLS[1:], data=data, **changed)


def with_pictures(name, folder):
    """The sample files of a suite and a picture for every item, and the pictures' paths."""
    shutil.copytree(DATA / name, folder)
    items = catalogue().find(name).suite().load(folder).items
    paths = [folder / FOLDERS[name] / image for image in dict.fromkeys(item.image for item in items if item.image)]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), "red").save(path)
    return paths


def becomes_a_folder(path):
    path.unlink()
    path.mkdir()


SPOILS = {
    "missing": Path.unlink,
    "git-LFS pointer": lambda path: path.write_bytes(LFS),
    "HTML page": lambda path: path.write_bytes(HTML),
    "empty": lambda path: path.write_bytes(b""),
    "broken": lambda path: path.write_bytes(path.read_bytes()[:45]),
    "it is a folder": becomes_a_folder,
}


@pytest.mark.parametrize("name", OF_FILES)
@pytest.mark.parametrize("kind", SPOILS)
def test_pictures_that_cannot_be_used_are_found_before_the_run_and_named(name, kind, tmp_path):
    paths = with_pictures(name, tmp_path / "data")
    runner.gather(plan(name, tmp_path / "data"))
    SPOILS[kind](paths[0])
    with pytest.raises(InputError, match=f"{name}: 1 of {len(paths)} pictures cannot be used .*{kind}") as caught:
        runner.gather(plan(name, tmp_path / "data"))
    assert paths[0].name in str(caught.value)
    assert "--missing-pictures skip" in str(caught.value)
    left = runner.gather(plan(name, tmp_path / "data", missing_pictures="skip"))
    assert list(left.left_out[name].faults) == [paths[0].relative_to(tmp_path / "data" / FOLDERS[name]).as_posix()]
    assert left.left_out[name].items == len(runner_items(name, tmp_path)) - len(left.items[name]) > 0


def runner_items(name, folder):
    return catalogue().find(name).suite().load(folder / "data").items


def test_many_missing_pictures_make_one_message_of_few_names(tmp_path):
    paths = with_pictures("mme", tmp_path / "data")
    for path in paths[1:]:
        path.unlink()
    with pytest.raises(InputError) as caught:
        runner.gather(plan("mme", tmp_path / "data"))
    message = str(caught.value)
    assert f"{len(paths) - 1} of {len(paths)} pictures" in message
    assert message.count("(missing)") == 3 < len(paths) - 1
    paths[0].unlink()
    with pytest.raises(InputError, match="cannot be used"):
        runner.gather(plan("mme", tmp_path / "data", missing_pictures="skip"))


def test_what_was_left_out_stands_in_manifest_tables_and_page(tmp_path):
    paths = with_pictures("pope", tmp_path / "data")
    paths[0].unlink()
    skipping = plan("pope", tmp_path / "data", missing_pictures="skip")
    record = quick_run.run(tmp_path / "run", skipping)
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    left_out = manifest["suites"]["pope"]["left_out"]
    assert (manifest["missing_pictures"], left_out["pictures"]) == ("skip", 1)
    assert left_out["first"] == [f"{paths[0].name} (missing)"]
    assert manifest["suites"]["pope"]["items"] + left_out["items"] == len(runner_items("pope", tmp_path))
    scored = score(record)
    expected = f"{left_out['items']} items, since 1 picture is missing or broken: {paths[0].name} (missing)"
    assert f"pope: left out {expected}" in notes(scored)
    assert expected in render(scored, {})
    assert facts(manifest)


def test_a_picture_that_comes_later_makes_it_another_run(tmp_path):
    paths = with_pictures("pope", tmp_path / "data")
    paths[0].rename(tmp_path / "kept.jpg")
    quick_run.run(tmp_path / "run", plan("pope", tmp_path / "data", missing_pictures="skip"))
    (tmp_path / "kept.jpg").rename(paths[0])
    with pytest.raises(InputError, match=r"holds a run with other settings: suites.pope.items"):
        quick_run.run(tmp_path / "run", plan("pope", tmp_path / "data", missing_pictures="skip"))


def test_a_suite_that_only_has_pictures_is_checked_by_loading_them(monkeypatch):
    def broken(self, data, image):
        raise FileNotFoundError(image)

    monkeypatch.setattr(quick_run.Toy, "picture", broken)
    with pytest.raises(InputError, match="toy: 5 of 5 pictures cannot be used"):
        runner.gather(quick_run.plan())


@pytest.mark.parametrize("where", ["file", "file/run", "new/file/run"])
def test_a_file_where_the_run_should_go_is_refused_and_nothing_is_written(tmp_path, where):
    (tmp_path / "new").mkdir()
    for file in (tmp_path / "file", tmp_path / "new/file"):
        file.write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    for use in (store.check_folder, quick_run.run):
        with pytest.raises(InputError, match="is a file"):
            use(tmp_path / where)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_cannot_be_written_to_is_refused_before_a_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(store.os, "access", lambda *_: False)
    with pytest.raises(InputError, match=f"{tmp_path} cannot be written to"):
        store.check_folder(tmp_path / "deep" / "run")
    assert not list(tmp_path.iterdir())


def test_an_item_that_cannot_be_kept_is_named_before_the_run(monkeypatch):
    items = quick_run.Toy().load(None).items
    for truth in ({1}, object(), float("nan"), "\ud800"):
        object.__setattr__(items[0], "truth", truth)
        monkeypatch.setattr(quick_run.Toy, "load", lambda self, data: quick_run.Loaded(items))
        with pytest.raises(InputError, match="toy: the item '0/is' cannot be kept as JSON"):
            runner.gather(quick_run.plan())
