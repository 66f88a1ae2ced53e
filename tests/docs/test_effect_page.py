"""The figures of the page on effect are those of the committed runs."""

import csv
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/explanation/effect.md"
RUNS = ROOT / "benchmarks/results/scenes"
LEVELS = ("object", "attribute", "relation")
HALVES = ("habit_true", "habit_breaking")


SECOND = "## On a Qwen2-VL"


def read(split, model="testbed"):
    with (RUNS / f"{model}-{split}.csv").open(encoding="utf-8", newline="") as file:
        return {(row["system"], row["measure"]): row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def figures():
    return read("counterfactual")


def written(figures, system):
    def show(measure):
        return f"{float(figures[system, measure]['value']):.3f}"

    halves = [" / ".join(show(f"{half}_{level}") for half in HALVES) for level in LEVELS]
    return [*halves, show("chair_i"), show("recall")]


@pytest.mark.parametrize(("part", "model"), [(0, "testbed"), (1, "qwen2_vl-0")])
def test_the_tables_are_those_of_the_runs(part, model):
    text = PAGE.read_text(encoding="utf-8").split(SECOND)[part]
    rows = re.findall(r"^\| `(.+?)` \| (.*) \|$", text, re.MULTILINE)
    assert len(rows) >= 10
    figures = read("counterfactual", model)
    for system, cells in rows:
        assert cells.split(" | ") == written(figures, system), system


def change(figures, system, measure):
    return float(figures[system, measure]["difference"])


def read_words(part=0):
    text = PAGE.read_text(encoding="utf-8")
    return " ".join((text.split(SECOND)[1] if part else text).split())


def check_captions(figures, page):
    for system, words in (
        ("revise", "{} % fewer absent objects at {} points less recall"),
        ("revise_fitted", "{} % fewer at {} points"),
    ):
        fewer = -change(figures, system, "chair_i") / float(figures["greedy", "chair_i"]["value"])
        recall = f"{-100 * change(figures, system, 'recall'):.1f}".removeprefix("0")
        assert words.format(f"{100 * fewer:.0f}", recall) in page


@pytest.mark.parametrize("split", ["counterfactual", "iid"])
def test_captions_of_the_second_model_are_told_as_they_came_out(split):
    check_captions(read(split, "qwen2_vl-0"), read_words(1))


def test_evidence_on_the_second_model_is_told_as_it_came_out():
    figures, page = read("counterfactual", "qwen2_vl-0"), read_words(1)
    halves = [change(figures, "patch_evidence", f"{half}_attribute") for half in ("habit_breaking", "habit_true")]
    assert (
        "wins {:.1f} points where habit is wrong and loses {:.1f}".format(*(abs(100 * half) for half in halves)) in page
    )
    for system in ("greedy", "patch_evidence", "swap@patch_evidence"):
        value = float(figures[system, "accuracy_vertical"]["value"])
        assert f"{value:.3f}".removeprefix("0") in page


def test_the_findings_are_those_of_the_run(figures):
    page = read_words()
    plain = {
        name: float(figures["greedy", name]["value"])
        for name in ("chair_i", "habit_true_attribute", "habit_breaking_attribute")
    }
    won = change(figures, "patch_evidence", "habit_breaking_attribute")
    assert f"(+{won:.3f}, corrected p".replace("+0.", "+.") in page
    lost = plain["habit_true_attribute"] - plain["habit_breaking_attribute"]
    assert f"Attributes came to {won / lost:.0%}".replace("%", " %") in page
    for system in ("revise", "revise_fitted"):
        fewer = -change(figures, system, "chair_i") / plain["chair_i"]
        recall = -100 * change(figures, system, "recall")
        assert f"{fewer:.0%}".replace("%", " % fewer absent objects") in page
        assert f"{recall:.1f}".removeprefix("0") + " points fewer of the present ones" in page


def test_evidence_on_the_other_split_of_the_second_model_is_told_as_it_came_out():
    figures, page = read("iid", "qwen2_vl-0"), read_words(1)
    changes = [
        f"{change(figures, 'patch_evidence', measure):.3f}".removeprefix("0")
        for measure in (
            "habit_balanced",
            "habit_breaking_attribute",
            "habit_breaking_relation",
            "habit_balanced_relation",
        )
    ]
    assert (
        "gains {} over all levels, beyond every control, with attributes +{} and relations +{}".format(*changes) in page
    )
    assert f"+{changes[3]}, are not told from greedy" in page


def test_the_other_split_is_told_as_it_came_out():
    figures, page = read("iid"), read_words()
    won = change(figures, "patch_evidence", "habit_breaking_attribute")
    assert f"attributes +{won:.3f} where habit is wrong".replace("+0.", "+.") in page
    check_captions(figures, page)


def test_times_are_those_of_the_run(figures):
    page = read_words()
    told = re.findall(r"`(\w+)` (\d\.\d\d)x", page)
    assert len(told) >= 6
    for system, ratio in told:
        assert ratio == f"{float(figures[system, 'habit_balanced']['time_ratio']):.2f}", system


def read_verdicts(level):
    text = (RUNS / "testbed-counterfactual.verdicts.json").read_text(encoding="utf-8")
    return json.loads(text)["verdicts"][level]


def find(level, kind):
    return {name for name, found in read_verdicts(level).items() if found == kind and "+" not in name}


def test_what_helps_and_what_hurts_is_what_the_verdicts_say(figures):
    page = read_words()
    assert find("all levels", "helps") == find("object", "helps") == set()
    assert find("attribute", "helps") == {"patch_evidence", "vdd", "gated", "vsv"}
    assert find("relation", "helps") == {"vsv", "pai"}
    assert find("caption", "helps") == {"revise", "revise_fitted", "nullu"}
    assert find("object", "hurts") == {"ritual", "transform", "views", "sid", "vti"}
    assert {"ritual", "transform"} == set.intersection(*(find(level, "hurts") for level in LEVELS))
    gains = [
        change(figures, name, "habit_balanced") for name in ("vdd+patch_evidence", "patch_evidence", "vdd", "bias")
    ]
    best, evidence, contrast, bias = (f"{gain:.3f}".removeprefix("0") for gain in gains)
    assert evidence == contrast
    assert f"`vdd+patch_evidence`, gains {best}, `patch_evidence` and `vdd` {evidence}, and" in page
    assert f"greedy's margins {bias}." in page
    steered = [f"{change(figures, name, 'habit_balanced_relation'):.3f}".removeprefix("0") for name in ("vsv", "pai")]
    assert "beyond every control, by {} and {}.".format(*steered) in page


def test_erasing_in_captions_is_told_as_it_came_out(figures):
    fewer = -change(figures, "nullu", "chair_i") / float(figures["greedy", "chair_i"]["value"])
    recall = -100 * change(figures, "nullu", "recall")
    assert (
        f"`nullu` is the only other one beyond every control: {100 * fewer:.0f} % fewer, and {recall:.1f} points."
        in read_words()
    )
