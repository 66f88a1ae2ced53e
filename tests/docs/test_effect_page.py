"""The figures of the page on effect are those of the committed run."""

import csv
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/explanation/effect.md"
RUNS = ROOT / "benchmarks/results/scenes"
LEVELS = ("object", "attribute", "relation")
HALVES = ("habit_true", "habit_breaking")


def read(split):
    with (RUNS / f"testbed-{split}.csv").open(encoding="utf-8", newline="") as file:
        return {(row["system"], row["measure"]): row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def figures():
    return read("counterfactual")


def written(figures, system):
    def show(measure):
        return f"{float(figures[system, measure]['value']):.3f}"

    halves = [" / ".join(show(f"{half}_{level}") for half in HALVES) for level in LEVELS]
    return [*halves, show("chair_i"), show("recall")]


def test_the_table_is_that_of_the_run(figures):
    rows = re.findall(r"^\| `(.+?)` \| (.*) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) >= 10
    for system, cells in rows:
        assert cells.split(" | ") == written(figures, system), system


def change(figures, system, measure):
    return float(figures[system, measure]["difference"])


def test_the_findings_are_those_of_the_run(figures):
    page = " ".join(PAGE.read_text(encoding="utf-8").split())
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


def test_the_other_split_is_told_as_it_came_out():
    figures, page = read("iid"), " ".join(PAGE.read_text(encoding="utf-8").split())
    won = change(figures, "patch_evidence", "habit_breaking_attribute")
    assert f"attributes +{won:.3f} where habit is wrong".replace("+0.", "+.") in page
    for system, words in (
        ("revise", "{} % fewer absent objects at {} points less recall"),
        ("revise_fitted", "{} % fewer at {} points"),
    ):
        fewer = -change(figures, system, "chair_i") / float(figures["greedy", "chair_i"]["value"])
        recall = f"{-100 * change(figures, system, 'recall'):.1f}".removeprefix("0")
        assert words.format(f"{100 * fewer:.0f}", recall) in page


def test_times_are_those_of_the_run(figures):
    page = " ".join(PAGE.read_text(encoding="utf-8").split())
    told = re.findall(r"`(\w+)` (\d\.\d\d)x", page)
    assert len(told) >= 6
    for system, ratio in told:
        assert ratio == f"{float(figures[system, 'habit_balanced']['time_ratio']):.2f}", system
