"""What the pages of several runs say together."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from lvlm_guard.bench.reporting.results import Outcome, Results, Score
from lvlm_guard.bench.reporting.verdicts import Verdict
from lvlm_guard.bench.scoring.intervals import Interval
from lvlm_guard.bench.scoring.significance import Significance
from lvlm_guard.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
LEVELS = ("all levels", "object", "attribute", "relation", "caption")


@pytest.fixture(scope="module")
def scenes(script):
    return script("scenes")


@pytest.fixture
def a_run(scenes):
    """A function from verdicts on objects to a run in which each strategy makes the same difference there."""

    def make(model, change=0.1, **kinds):
        test = Significance(Interval(change, change, change), 0.001, 40, 4, "sign flip", 0.001)
        scores = [_score("greedy", 0.8, None), *(_score(name, 0.8 + change, test) for name in kinds)]
        outcomes = [Outcome("scenes", name, "stack", 40, 40) for name in ("greedy", *kinds)]
        architecture = model.split("-")[0]
        manifest = {"model": {"id": model, "class": f"{architecture}ForConditionalGeneration"}, "versions": {}}
        judged = {level: {name: _verdict(name, level, kind) for name, kind in kinds.items()} for level in LEVELS}
        scored = Results(manifest, {"scenes": "ours"}, outcomes, scores)
        return scenes.pages.Run(model, "iid", scored, judged, 1)

    return make


def _score(system, value, test):
    found = Interval(value, value - 0.1, value + 0.1)
    return Score("scenes", system, "habit_balanced_object", "object", "habit-balanced", True, found, 40, 4, test)


def _verdict(name, level, kind):
    return Verdict("scenes", name, kind if level == "object" else "changed nothing", "")


def test_a_manifest_is_published_without_the_folders_of_a_machine(scenes):
    params = {"artefact": "/home/me/runs/testbed/fitted/vti.safetensors", "layers": "a/b"}
    told = scenes.pages.write_manifest({"systems": [{"params": params}]})
    assert json.loads(told) == {"systems": [{"params": {"artefact": "fitted/vti.safetensors", "layers": "a/b"}}]}
    kept = list((ROOT / "benchmarks/results/scenes").glob("*.manifest.json"))
    assert len(kept) >= 4
    for path in kept:
        assert '"artefact": "fitted/' in path.read_text(encoding="utf-8")
        assert '"artefact": "/' not in path.read_text(encoding="utf-8")


def test_verdicts_of_several_models_are_put_together_in_words(scenes, a_run):
    same, shift = "indistinguishable from greedy", "only shifts bias"
    first = a_run("Llava-0", a="helps", b="helps", c=shift, d=same, e="hurts", f="changed nothing")
    second = a_run("Llava-1", a="helps", b="hurts", c=same, d="changed nothing", e="hurts", f="changed nothing")
    told = scenes.pages.in_words([first, second]).split("- **attribute**")[0]
    assert "helps, and hurts nowhere: `a` (helps 2 of 2)." in told
    assert "helps one model and hurts another: `b` (helps 1, hurts 1 of 2)." in told
    assert "only shifts bias, or gains no more than a control: `c` (only shifts bias 1 of 2)." in told
    assert "never told from greedy: `d`." in told
    assert "hurts, and helps nowhere: `e` (hurts 2 of 2)." in told
    assert "changed no answer: `f`." in told


def test_architectures_stand_apart_and_seeds_together(scenes, a_run):
    llavas = a_run("Llava-0", 0.1, a="helps"), a_run("Llava-1", 0.2, a="hurts")
    text = scenes.pages.overview([*llavas, a_run("Qwen2VL-0", -0.1, a="hurts")])
    rows = [line for line in text.splitlines() if line.startswith("| a ")]
    assert re.search(r"Llava +\| - +\| \+0\.150 \(\+0\.100 to \+0\.200\): helps 1, hurts 1", rows[0])
    assert re.search(r"Qwen2VL +\| - +\| -0\.100: hurts 1", rows[1])
    assert "(Llava: 2, Qwen2VL: 1)" in text
    assert text.count("[Llava-") == 2


def test_no_runs_are_an_error(scenes, tmp_path):
    with pytest.raises(InputError, match="holds no run"):
        scenes.tabulate(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_one_command_runs_every_model_and_writes_the_tables(scenes, tmp_path, monkeypatch):
    models, ran, tabled = tmp_path / "models", [], []
    for name in ("llava-1", "llava-2"):
        (models / name).mkdir(parents=True)
    (models / "manifest.json").write_text('{"llava-1": {}, "llava-2": {}}')
    monkeypatch.setattr(scenes, "run", lambda name, splits, *_: ran.append((name, tuple(splits))))
    monkeypatch.setattr(scenes, "tabulate", lambda *given: tabled.append(given))
    scenes.main(["all", "--models", str(models), "--out", "runs", "--results", "results"])
    names = ("testbed", str(models / "llava-1"), str(models / "llava-2"))
    assert ran == [(name, ("counterfactual", "iid")) for name in names]
    assert tabled == [(Path("runs"), Path("results"), models)]


def test_models_without_a_note_or_weights_are_an_error_before_anything_runs(scenes, tmp_path, monkeypatch):
    monkeypatch.setattr(scenes, "run", lambda *_: pytest.fail("it ran"))
    given = ["all", "--models", str(tmp_path), "--out", str(tmp_path / "runs")]
    with pytest.raises(SystemExit, match=r"has no manifest\.json: pass the folder"):
        scenes.main(given)
    (tmp_path / "manifest.json").write_text('{"llava-1": {}}')
    with pytest.raises(SystemExit, match=r"not there: .*llava-1\. Run seeds\.py again"):
        scenes.main(given)


def test_halves_stand_beside_their_mean_and_old_runs_apart(scenes, a_run):
    run = a_run("Llava-0", a="helps")
    halves = [replace(run.scored.scores[0], measure=f"habit_{half}_object") for half in ("true", "breaking")]
    whole = replace(run, scored=replace(run.scored, scores=[*run.scored.scores, *halves]))
    columns = scenes.pages._columns(whole)
    assert columns[columns.index("object") + 1] == "object, right / wrong"
    row = next(row for row in scenes.pages.rows(whole) if row["system"] == "greedy")
    assert row["object, right / wrong"].count("0.800") == 2
    old = replace(run, design="one_sided")
    assert "not for claims" in old.title
    assert not any("right / wrong" in column for column in scenes.pages._columns(old))
    text = scenes.pages.overview([run, old])
    assert [line for line in text.splitlines() if line.startswith("## ")] == [f"## {run.title}", f"## {old.title}"]


def test_collages_have_pages_of_their_own(scenes, a_run, tmp_path):
    run = replace(a_run("collage", -0.1, a="hurts"), world="collage")
    text = scenes.pages.overview([run])
    assert text.startswith("# Every strategy on collages of pictures with names")
    assert "](collage/collage-iid.md)" in text
    assert "](collage.svg)" in text
    assert "`rank` is left out: it needs a scorer" in scenes.pages.page(run)
    with pytest.raises(InputError, match="holds no run of collage"):
        scenes.tabulate(tmp_path, tmp_path / "out", world=scenes.WORLDS["collage"])


def test_both_worlds_ask_more_than_a_thousand_questions_and_their_captions(script):
    for world in script("worlds").WORLDS.values():
        for split in world.splits:
            suite = world.choose(split).suite
            assert suite.split == split
            assert suite.captions >= 200
    assert {"rank"} == set(script("worlds").COLLAGE.left_out)


def test_runs_of_before_stand_beside_new_ones(scenes, a_run, tmp_path):
    first, second = a_run("testbed", 0.1, a="helps", b="hurts"), a_run("Qwen2VL-0", -0.1, a="hurts")
    scenes.pages.write([first], [first], tmp_path)
    scenes.scenes_kept.keep(first, tmp_path / "scenes")
    recalled = scenes.scenes_kept.recall(tmp_path / "scenes")
    assert scenes.pages.overview([*recalled, second]) == scenes.pages.overview([first, second])
    assert scenes.scenes_chart.draw([*recalled, second]) == scenes.scenes_chart.draw([first, second])
