"""The choice of the demo's stack: what is dropped, what wins, and that nothing but calibration scenes is seen."""

import json
import sys

import pytest

from lvlm_guard import Stack
from lvlm_guard.bench.scoring.intervals import Interval
from lvlm_guard.errors import FitRefused
from lvlm_guard.host.plugins import catalogue
from lvlm_guard.testbed.figures import DEMO_FIGURES


@pytest.fixture(scope="module")
def chooser(script):
    return script("choose_stack")


@pytest.fixture
def result(chooser):
    """A function from differences by measure to a result; half a point of interval on each side."""

    def make(*entries, **changes):
        def interval(change):
            return Interval(change, change - 0.005, change + 0.005)

        measured = {name: interval(changes.get(name, 0.0)) for name in DEMO_FIGURES}
        return chooser.Result(tuple({"name": name, "params": {}} for name in entries), measured, 1.0)

    return make


def test_gain_is_the_mean_over_the_levels_and_fewer_inventions_are_a_gain(result):
    assert result("vcd", object=0.04, attribute=0.02, relation=-0.002, caption=-0.06).gain == pytest.approx(0.118 / 4)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"object": -0.004}, ""),
        ({"object": -0.006}, "worse: object"),
        ({"caption": 0.006}, "worse: caption"),
        ({"caption": -0.2, "relation": -0.1}, "worse: relation"),
        ({"caption_recall": -0.03}, ""),
        ({"caption_recall": -0.031}, "names less"),
        ({"caption_spoilt": 0.3}, ""),
        ({"attribute": 0.05, "attribute_true": -0.006}, "moves habit: attribute_true"),
        ({"attribute": 0.05, "attribute_true": -0.004}, ""),
    ],
)
def test_a_candidate_that_costs_something_is_dropped(result, changes, why):
    assert result("vcd", **changes).dropped == why


def test_the_largest_gain_of_those_left_wins(chooser, result):
    nothing, some = result(), result("vcd", object=0.02)
    much = result("vdd", object=0.2, caption_recall=-0.1)
    refused = chooser.Result(({"name": "icd"},), {}, 0.0, "Refused: no")
    assert chooser.choose([nothing, some, much, refused]) is some
    assert chooser.choose([nothing, much, refused, result("m3id", object=-0.001)]) is nothing


@pytest.mark.parametrize(
    "entries",
    [
        [],
        [{"name": "vcd", "params": {}}],
        [{"name": "vcd", "params": {"alpha": 0.5, "noise_step": 700}}, {"name": "vdd", "params": {"blank": "none"}}],
    ],
)
def test_the_stack_file_reads_back(chooser, tmp_path, entries):
    path = tmp_path / "stack.toml"
    path.write_text(chooser.toml(chooser.Result(tuple(entries), {}, 1.0)))
    assert Stack.read(path) == Stack.of(list(entries))


def test_every_bundled_mitigation_and_none_at_all_are_candidates(chooser):
    found = chooser.candidates()
    assert found[0] == ()
    alone = {one[0]["name"] for one in found if len(one) == 1 and set(one[0]["params"]) <= {"artefact"}}
    offers = [offer.describe() for offer in catalogue() if offer.distribution == "lvlm-guard"]
    assert alone == {one["name"] for one in offers if one["family"] not in ("control", "search")}
    assert all(catalogue().find(entry["name"]) for one in chooser.SETTINGS for entry in one)
    bare = [one for one in chooser.SETTINGS if not chooser.fitted_kinds(one)]
    assert all(len(Stack.of(list(one))) == len(one) for one in bare)


def test_what_was_fitted_goes_beside_the_stack_file(chooser, tmp_path):
    entries = ({"name": "vti", "params": {"artefact": "fitted", "alpha_text": 0.5}}, {"name": "vcd", "params": {}})
    chosen = chooser.Result(entries, {}, 1.0)
    source, kept = tmp_path / "run/fitted", tmp_path / "fitted"
    source.mkdir(parents=True)
    kept.mkdir()
    (source / "vti.safetensors").write_bytes(b"directions")
    (kept / "nullu.safetensors").touch()
    chooser.keep_fitted(chosen, source, kept)
    (tmp_path / "stack.toml").write_text(chooser.toml(chosen))
    vti, _ = Stack.read(tmp_path / "stack.toml")
    assert vti.artefact.read_bytes() == b"directions"
    assert [path.name for path in kept.iterdir()] == ["vti.safetensors"]
    assert chosen.label == "vti (fitted, alpha_text 0.5) + vcd"


def test_a_fit_that_is_refused_is_the_reason_of_its_candidates_only(chooser, script, tmp_path, monkeypatch):
    stacks = script("scenes_stacks")
    fits = []

    def refuse(kind, *_):
        fits.append(kind)
        raise FitRefused(f"{kind} adds nothing")

    monkeypatch.setattr(stacks, "_fit", refuse)
    for _ in range(2):
        fitted, refused = stacks.fit_all(None, None, tmp_path, ["vti", "vcd"])
        assert (fitted, refused) == ({}, {"vti": "vti adds nothing"})
    assert fits == ["vti"]
    entries = [({"name": "vti", "params": {"artefact": "none.safetensors"}},), ({"name": "vcd", "params": {}},)]
    built, reasons = chooser._build_stacks(entries, refused)
    assert list(built) == ["candidate-1"]
    assert reasons == {"candidate-0": "FitRefused: vti adds nothing"}


def test_a_run_writes_both_files_and_sees_calibration_scenes_only(chooser, tmp_path, monkeypatch, capsys):
    seen = set()
    load = chooser.Scenes.load

    def loading(suite, data):
        loaded = load(suite, data)
        seen.update(item.image.split("-")[0] for item in loaded.items)
        return loaded

    monkeypatch.setattr(chooser.Scenes, "load", loading)
    refused = {"name": "icd", "params": {"place": "nowhere"}}
    monkeypatch.setattr(chooser, "candidates", lambda: [(), ({"name": "m3id", "params": {}},), (refused,)])
    monkeypatch.setattr(
        sys, "argv", ["x", "--scenes", "8", "--stack", str(tmp_path / "s.toml"), "--table", str(tmp_path / "t.md")]
    )
    chooser.main()
    assert seen == {"calibration"}
    assert Stack.read(tmp_path / "s.toml").names in ((), ("m3id",))
    told = (tmp_path / "t.md").read_text()
    for words in (
        "--scenes 8 --seed 17",
        "Nothing was\nchosen on evaluation scenes",
        "torch ",
        "transformers ",
        "**chosen**",
    ):
        assert words in told
    assert "| m3id |" in told
    assert "icd (place nowhere): StackError" in told
    assert json.dumps(str(tmp_path / "t.md")).strip('"') in capsys.readouterr().out
