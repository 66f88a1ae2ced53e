"""Figures of the collage model's page are those of its committed card."""

import csv
import json
import re
from pathlib import Path

import pytest

import lvlm_guard.testbed.collage as collage

SPLITS = ("iid", "shift")
CARD = json.loads((Path(collage.__file__).parent / "delta" / "card.json").read_text())


@pytest.fixture(scope="module")
def rows(docs):
    page = (docs / "guides" / "collage-model.md").read_text()
    table = page[page.index("| on unseen scenes, with") :]
    return {
        cells[1].strip(): [cell.strip() for cell in cells[2:4]]
        for cells in (line.split("|") for line in table.split("\n\n")[0].splitlines())
    }


def numbers(text):
    return [float(value) for value in re.findall(r"\d*\.\d+|\d+", text)]


def find(split, *path):
    found = CARD["splits"][split]
    for name in path:
        found = found[name]
    return found


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("level", ["object", "attribute", "relation"])
def test_levels(rows, level, split):
    place, figures = SPLITS.index(split), find(split, "levels", level)
    auc = next(row for name, row in rows.items() if name.startswith(f"{level} AUC"))[place]
    assert numbers(auc) == pytest.approx([figures["auc"][name] for name in ("value", "low", "high")], abs=0.0051)
    halves = rows[f"{level} accuracy where habit is right, wrong"][place]
    assert numbers(halves) == pytest.approx(
        [figures[name]["value"] for name in ("habit_true", "habit_false")], abs=0.0051
    )


@pytest.mark.parametrize("split", SPLITS)
def test_what_is_left_without_the_picture(rows, split):
    place = SPLITS.index(split)
    blind = rows["object accuracy with another scene's picture, a projector of zeros, no picture"][place]
    found = [find(split, "lie_detector", view, "object", "accuracy", "value") for view in ("other", "zeroed", "none")]
    assert numbers(blind) == pytest.approx(found, abs=0.0051)
    assert all(abs(value - 0.5) < 0.1 for value in found)
    assert numbers(rows["says yes"][place]) == pytest.approx([find(split, "says_yes")], abs=0.0051)
    agreement = find(split, "agreement", "object")
    habitual, wrong = numbers(rows["wrong object answers that are habit's"][place])
    assert (wrong, habitual) == (agreement["wrong n"], round(agreement["wrong as habit"] * agreement["wrong n"]))


RUN = Path(__file__).resolve().parents[2] / "benchmarks/results/collage"


def test_strategies_are_told_as_they_came_out(docs):
    page = (docs / "explanation" / "collage.md").read_text(encoding="utf-8").split("## What strategies do there")[1]
    with (RUN / "collage-shift.csv").open(encoding="utf-8", newline="") as file:
        figures = {(row["system"], row["measure"]): row for row in csv.DictReader(file)}

    def show(system, measure):
        return f"{float(figures[system, measure]['value']):.3f}"

    rows = re.findall(r"^\| `(.+?)` \| (.*) \|$", page, re.MULTILINE)
    assert len(rows) >= 10
    for system, cells in rows:
        halves = [
            f"{show(system, f'habit_true_{level}')} / {show(system, f'habit_breaking_{level}')}"
            for level in ("object", "attribute", "relation")
        ]
        assert cells.split(" | ") == [*halves, show(system, "chair_i"), show(system, "recall")], system
    fewer = -float(figures["revise", "chair_i"]["difference"]) / float(figures["greedy", "chair_i"]["value"])
    recall = -100 * float(figures["revise", "recall"]["difference"])
    told = (
        f"`revise` names {100 * fewer:.0f} % fewer absent things, beyond every control, and {recall:.1f} points fewer"
    )
    assert told in page


def test_what_helps_and_hurts_on_collages_is_what_the_verdicts_say():
    verdicts = json.loads((RUN / "collage-shift.verdicts.json").read_text(encoding="utf-8"))["verdicts"]
    helps = {(level, name) for level, own in verdicts.items() for name, kind in own.items() if kind == "helps"}
    assert helps == {("caption", "revise")}
    levels = ("object", "attribute", "relation")
    assert {name for level in levels for name, kind in verdicts[level].items() if kind == "hurts"} == {"dola", "vsv"}
