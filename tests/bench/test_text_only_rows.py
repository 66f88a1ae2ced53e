"""Rows without a picture: a strategy that needs one skips them, is scored on the rest, and what it skipped is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from command_line import run_command

from lvlm_guard import Guard, Stack, testbed
from lvlm_guard.bench.reporting import page
from lvlm_guard.bench.reporting.comparing import compare
from lvlm_guard.bench.reporting.results import score
from lvlm_guard.bench.running import runner, store, systems
from lvlm_guard.bench.running.batches import build_batches
from lvlm_guard.bench.running.manifest import RunPlan, SuiteChoice
from lvlm_guard.bench.suites.hallusionbench import HallusionBench
from lvlm_guard.cli.bench_tables import notes
from lvlm_guard.errors import InputError
from lvlm_guard.testbed.world.scenes import scene

OFF = systems.CONTROLS[1:]
NAME = "hallusionbench"


@pytest.fixture(scope="module")
def bundled():
    return testbed.load()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The sample of the file with a picture for every row that has one: ten of twelve."""
    folder = tmp_path_factory.mktemp("data") / NAME
    shutil.copytree(Path(__file__).parent / "data" / NAME, folder)
    for number, image in enumerate(sorted({item.image for item in HallusionBench().load(folder).items if item.image})):
        path = folder / "hallusion_bench" / image
        path.parent.mkdir(parents=True, exist_ok=True)
        scene("iid", number).picture.save(path)
    return folder


def plan(data, stacks, batch=4):
    compared = systems.build_systems({name: Stack.of(stack) for name, stack in stacks.items()}, OFF)
    arguments = {"max_new_tokens": 3}
    return RunPlan(
        {NAME: SuiteChoice(HallusionBench(**arguments), "ours", arguments)}, compared, OFF, data, batch=batch
    )


def run(folder, bundled, chosen):
    return runner.run(chosen, *bundled, folder, model_id="testbed", progress=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, bundled, data):
    folder = tmp_path_factory.mktemp("runs") / "run"
    return run(folder, bundled, plan(data, {"vcd": "vcd", "dola": "dola"}))


def test_rows_without_a_picture_are_skipped_by_who_needs_one_and_answered_by_the_others(finished):
    answered = {system: [one.item.id for one in finished.read_answers(system, NAME)] for system in finished.systems}
    without = [item.id for item in finished.items[NAME] if item.image is None]
    assert len(without) == 2
    assert {system: len(ids) for system, ids in answered.items()} == {"greedy": 12, "vcd": 10, "dola": 12}
    assert not set(answered["vcd"]) & set(without)
    skipped = finished.read_skipped("vcd", NAME)
    assert list(skipped.ids) == without
    assert "needs an image" in skipped.reason
    assert finished.refusal("vcd", NAME) is None
    assert finished.manifest["suites"][NAME]["without_picture"] == 2
    assert [cost["rows"] for cost in finished.costs("vcd", NAME)] == [4, 4, 2]


def test_rows_with_pictures_get_the_guarded_answer_beside_rows_without(finished, bundled, data):
    """One prompt at a time, by hand."""
    plain = {one.item.id: one.margin for one in finished.read_answers("greedy", NAME)}
    moves = [abs(one.margin - plain[one.item.id]) for one in finished.read_answers("vcd", NAME)]
    assert min(moves) > 0, "the strategy works on every one of them"
    guard = Guard(*bundled, "vcd")
    for one in finished.read_answers("vcd", NAME):
        content = [
            {"type": "image", "image": HallusionBench().picture(data, one.item.image)},
            {"type": "text", "text": one.item.prompt},
        ]
        inputs = guard.inputs(messages=[[{"role": "user", "content": content}]])
        output = guard.generate(**inputs, max_new_tokens=3, do_sample=False)
        tokens = output[0, inputs["input_ids"].shape[1] :]
        assert one.text == bundled[1].tokenizer.decode(tokens, skip_special_tokens=True)


def test_no_batch_mixes_rows_with_and_without_a_picture(finished):
    for rows in (1, 2, 5, 64):
        kinds = [{item.image is None for item in batch.items} for batch in build_batches(finished.items[NAME], rows)]
        assert all(len(kind) == 1 for kind in kinds)
        assert {True} in kinds


def test_all_scores_and_tests_are_about_the_items_that_everybody_answered(finished):
    scored = score(finished)
    outcomes = {outcome.system: outcome for outcome in scored.outcomes}
    assert {name: (one.answers, one.skipped, one.whole) for name, one in outcomes.items()} == {
        "greedy": (12, 0, True),
        "vcd": (10, 2, True),
        "dola": (12, 0, True),
    }
    accuracy = scored.of(NAME, "accuracy")
    assert {name: one.n for name, one in accuracy.items()} == {"greedy": 10, "vcd": 10, "dola": 10}
    pictured = [one for one in finished.read_answers("greedy", NAME) if one.item.image]
    measure = next(one for one in HallusionBench().measures("ours") if one.name == "accuracy")
    assert accuracy["greedy"].found.value == measure.value(pictured)
    difference = accuracy["vcd"].against_greedy.difference.value
    assert difference == pytest.approx(accuracy["vcd"].found.value - accuracy["greedy"].found.value)


def test_official_figures_are_those_of_whole_files(finished):
    outcomes = {outcome.system: outcome for outcome in score(finished).outcomes}
    assert outcomes["greedy"].official == HallusionBench().official(finished.read_answers("greedy", NAME), "ours")
    assert outcomes["vcd"].official == {}


def test_tables_page_and_figures_say_how_many_were_skipped_and_why(finished):
    scored = score(finished)
    said = next(line for line in notes(scored) if "skipped" in line)
    assert said.startswith(
        f"{NAME}, vcd skipped 2 of 12 items, which have no picture; the scores of all systems are about"
    )
    assert "needs an image" in said
    page.write(finished, scored, finished.folder / "report.html")
    text = (finished.folder / "report.html").read_text()
    assert "skipped by vcd" in text
    assert "2 of 12 items" in text


def test_the_command_says_it_and_ends_well(tmp_path, data):
    off = [option for name in OFF for option in ("--without", name)]
    asked = (
        "bench",
        "run",
        f"{NAME}:max_new_tokens=2",
        "--data",
        data,
        "--stack",
        "vcd",
        *off,
        "--out",
        tmp_path / "run",
    )
    told = run_command(*asked, columns=300)
    assert f"{NAME}, vcd skipped 2 of 12 items" in told
    assert "2 of 12" in told.split("vcd against greedy")[0], "in the table too"
    scored = json.loads((tmp_path / "run" / "results.json").read_text())
    assert {one["system"]: one["skipped"] for one in scored["outcomes"]} == {"greedy": 0, "vcd": 2}
    assert told == run_command(*asked, columns=300), "the run is finished, and nothing is asked again"


@pytest.mark.parametrize("kept", [0, 3, 11])
def test_a_run_that_was_cut_off_is_taken_up_with_the_same_answers_and_skips(finished, bundled, data, tmp_path, kept):
    folder = shutil.copytree(finished.folder, tmp_path / "run")
    path = folder / "answers" / "vcd" / f"{NAME}.jsonl"
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:kept]) + lines[kept][:-7])
    record = run(folder, bundled, plan(data, {"vcd": "vcd", "dola": "dola"}))
    assert path.read_bytes() == whole
    assert record.read_skipped("vcd", NAME) == finished.read_skipped("vcd", NAME)


def test_a_skipped_row_that_is_edited_into_an_answer_is_found(finished, tmp_path):
    folder = shutil.copytree(finished.folder, tmp_path / "run")
    path = folder / "answers" / "vcd" / f"{NAME}.jsonl"
    path.write_text(path.read_text().replace('"skipped": true', '"skipped": false'))
    with pytest.raises(InputError, match="is not what the run wrote there"):
        store.read(folder).read_answers("vcd", NAME)


def test_what_refuses_rows_with_pictures_is_refused_as_before(bundled, data, tmp_path):
    record = run(tmp_path, bundled, plan(data, {"rank": "rank"}))
    assert "needs a scorer" in record.refusal("rank", NAME).reason
    assert {one.system: one.whole for one in score(record).outcomes} == {"greedy": True, "rank": False}
    assert score(record).of(NAME, "accuracy")["greedy"].n == 12, "it takes no items from the others"


def test_a_suite_without_any_picture_is_refused_as_before(bundled, data, tmp_path, monkeypatch):
    load = HallusionBench.load

    def load_text(self, folder):
        loaded = load(self, folder)
        return type(loaded)([item for item in loaded.items if item.image is None])

    monkeypatch.setattr(HallusionBench, "load", load_text)
    record = run(tmp_path, bundled, plan(data, {"vcd": "vcd"}))
    assert "needs an image" in record.refusal("vcd", NAME).reason
    assert record.read_skipped("vcd", NAME).ids == ()


def test_runs_are_compared_on_the_items_that_both_answered(finished, bundled, data, tmp_path):
    other = run(tmp_path, bundled, plan(data, {"vcd": "dola", "dola": "dola"}))
    comparison = compare(finished, other)
    pair = next(one for one in comparison.pairs if (one.system, one.measure) == ("vcd", "accuracy"))
    pictured = [one for one in other.read_answers("vcd", NAME) if one.item.image]
    measure = next(one for one in HallusionBench().measures("ours") if one.name == "accuracy")
    assert (len(pictured), pair.after) == (10, measure.value(pictured))
    assert f"{NAME}, vcd: 2 of 12 items without a picture, which it skipped" in comparison.left_out
