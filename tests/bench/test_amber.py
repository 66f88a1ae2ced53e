"""AMBER: the figures of its script on a set with its counts, and descriptions worked out by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lvlm_guard.bench.items import AnsweredItem, Item
from lvlm_guard.bench.scoring.nouns import amber_nouns
from lvlm_guard.bench.suites.amber import LEVEL_OF, Amber
from lvlm_guard.errors import InputError

DATA = Path(__file__).parent / "data" / "amber"
COUNTS = {  # questions whose answer is yes, and no
    "discriminative-hallucination": (0, 4924),
    "discriminative-attribute-state": (2382, 2382),
    "discriminative-attribute-number": (1036, 1036),
    "discriminative-attribute-action": (396, 396),
    "discriminative-relation": (975, 0),
    "relation": (0, 689),
}
FIGURES = ("accuracy", "precision", "recall", "f1")


@pytest.fixture(scope="module")
def whole_set():
    """As many questions of every type and truth as AMBER has."""
    kinds = [
        (kind, truth)
        for kind, both in COUNTS.items()
        for truth, n in zip(("yes", "no"), both, strict=True)
        for _ in range(n)
    ]
    return [
        Item(str(at), f"AMBER_{at % 1004}.jpg", "?", truth, LEVEL_OF[kind], kind) for at, (kind, truth) in enumerate(kinds, 1005)
    ]  # fmt: skip


def figures(suite, said, group, parser="official"):
    official = suite.official(said, parser)
    return tuple(official[f"{group}/{name}"] for name in FIGURES)


def test_always_no_gets_the_figures_of_the_script(whole_set):
    said = [AnsweredItem(item, "No") for item in whole_set]
    assert len(said) == 14216
    assert figures(Amber(), said, "discriminative") == (66.3, 66.3, 100.0, 79.7)
    assert figures(Amber(), said, "existence") == (100.0,) * 4
    assert figures(Amber(), said, "attribute") == (50.0, 50.0, 100.0, 66.7)
    assert figures(Amber(), said, "relation")[0] == 41.4


def test_the_truth_gets_everything_and_in_lower_case_nothing(whole_set):
    right = Amber().official([AnsweredItem(item, item.truth.capitalize()) for item in whole_set], "official")
    assert set(right.values()) == {100.0}
    small = [AnsweredItem(item, item.truth) for item in whole_set]
    assert set(Amber().official(small, "official").values()) == {0.0}
    assert set(Amber().official(small, "ours").values()) == {100.0}


def test_the_script_adds_more_to_the_f1_of_existence_than_to_the_others():
    said = [
        AnsweredItem(Item(str(at), "x", "?", "no", "object", "discriminative-hallucination"), "No" if at < 2 else "Yes")
        for at in range(4)
    ]
    assert figures(Amber(), said, "existence") == (50.0, 100.0, 50.0, 66.6)
    assert figures(Amber(), said, "discriminative") == (50.0, 100.0, 50.0, 66.7)


def test_the_scripts_counters_begin_above_zero_three_times_for_attributes():
    said = [AnsweredItem(Item("1", "x", "?", "no", "attribute", "discriminative-attribute-state"), "No")]
    assert figures(Amber(), said, "state") == (99.9,) * 4
    assert figures(Amber(), said, "attribute") == (99.7,) * 4
    assert figures(Amber(), said, "number") == (0.0,) * 4


def test_the_script_never_divides_by_zero():
    assert set(Amber().official([], "official").values()) == {0.0}


def test_beside_a_perfect_score_stands_the_yes_ratio(whole_set):
    suite = Amber("discriminative")
    said = [AnsweredItem(item, "No") for item in whole_set]
    measures = {measure.name: measure for measure in suite.measures("ours")}
    assert next(iter(measures)) == "f1"
    assert measures["f1"].value(said) == pytest.approx(0.797, abs=5e-4)
    assert measures["accuracy_existence"].value(said) == 1
    assert [measures[name].value(said) for name in ("yes_ratio", "harmonic_recall")] == [0, 0]
    assert [measures[f"accuracy_relation_{truth}"].value(said) for truth in ("yes", "no")] == [0, 1]
    assert measures["accuracy_number"].value(said) == pytest.approx(1 / 2)


def test_precision_recall_and_f1_are_those_of_no(whole_set):
    yes_no = [next(item for item in whole_set if item.truth == truth) for truth in ("yes", "no")]
    said = [
        AnsweredItem(yes_no[0], "No"),
        AnsweredItem(yes_no[0], "No"),
        AnsweredItem(yes_no[1], "No"),
        AnsweredItem(yes_no[1], "Yes"),
    ]
    said.append(AnsweredItem(yes_no[0], "Perhaps"))  # no "no"
    numbered = [
        AnsweredItem(Item(str(at), "x", "?", one.item.truth, "attribute", one.item.kind), one.text)
        for at, one in enumerate(said)
    ]
    measured = {measure.name: measure.value(numbered) for measure in Amber("discriminative").measures("ours")}
    assert measured["precision"] == pytest.approx(1 / 3)
    assert measured["recall"] == pytest.approx(1 / 2)
    assert measured["f1"] == pytest.approx(2 / 5)
    assert measured["yes_ratio"] == pytest.approx(1 / 5)


def test_the_six_types_and_descriptions_are_read():
    items = Amber().load(DATA).items
    assert {item.kind: item.level for item in items if item.kind != "generative"} == dict(LEVEL_OF)
    assert [item.id for item in items] == [str(at) for at in range(1, 15)]
    assert len(Amber("generative").load(DATA).items) == 2
    suffixed = Amber(prompt_suffix=" Yes or no?").load(DATA).items
    assert (suffixed[0].prompt, suffixed[2].prompt) == (
        "Describe this image.",
        "Is there a kite in this image? Yes or no?",
    )


def test_descriptions_of_a_hand_case():
    suite = Amber("generative")
    first, second = suite.load(DATA).items
    # woman covers person, water the lake; cloud and ship are absent, and expected; a light is never wrong; can is no noun
    said = [
        AnsweredItem(first, "Two women look at the water under clouds. A light and a ship can be seen."),
        AnsweredItem(second, "The street has trees."),
    ]
    measured = {measure.name: measure.value(said) for measure in suite.measures("ours")}
    assert measured["chair_ours"] == pytest.approx(2 / 7)
    assert measured["cover_ours"] == pytest.approx(4 / 6)
    assert measured["hal_ours"] == pytest.approx(1 / 2)
    assert measured["cog_ours"] == pytest.approx(2 / 4)
    assert measured["length"] == pytest.approx((16 + 4) / 2)


def test_a_word_of_several_kinds_is_a_noun_only_where_one_can_stand():
    known = {"can", "light", "sunglasses", "leaf", "tv"}
    assert amber_nouns("You can see a can in light rain with the light on.", known) == ["can", "light"]
    assert amber_nouns("TVs, leaves and sunglasses", known) == ["tv", "leaf", "sunglasses"]


def test_the_export_is_what_the_script_reads(tmp_path):
    items = Amber().load(DATA).items
    said = [
        AnsweredItem(item, text)
        for item, text in zip(items, ["A lake.", "A road.", "no.", "Yes!", "Perhaps", *["No"] * 9], strict=True)
    ]
    Amber().export(said[::-1], tmp_path / "out.json")
    rows = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert [row["id"] for row in rows] == list(range(1, 15))
    assert [row["response"] for row in rows][:6] == ["A lake.", "A road.", "No", "Yes", "Perhaps", "No"]
    assert {type(row["id"]) for row in rows} == {int}


def test_what_the_script_prints_is_read_back(tmp_path):
    printed = "Generative Task:\nCHAIR:\t\t 7.1\nCover:\t\t 51.0\nHal:\t\t 32.4\nCog:\t\t 3.9 \n\nDescriminative Task:\nAccuracy:\t 66.3\nF1:\t\t 79.7 \n\nExsitence:\nF1:\t\t 100.0 \n"
    (tmp_path / "out.txt").write_text("100%|####| 14216/14216 [00:01<00:00]\n" + printed, encoding="utf-8")
    told = Amber().import_scores(tmp_path / "out.txt")
    assert told["generative/CHAIR"] == 7.1
    assert told["generative/Cog"] == 3.9
    assert (told["discriminative/F1"], told["existence/F1"]) == (79.7, 100.0)
    (tmp_path / "empty.txt").write_text("nothing here\n", encoding="utf-8")
    with pytest.raises(InputError, match="holds no figures"):
        Amber().import_scores(tmp_path / "empty.txt")


def test_word_lists_are_needed_for_descriptions_only(tmp_path):
    shutil.copytree(DATA, tmp_path / "data")
    (tmp_path / "data" / "relation.json").unlink()
    with pytest.raises(InputError, match=r"relation\.json does not exist.*Expected layout"):
        Amber().load(tmp_path)
    assert len(Amber("discriminative").load(tmp_path).items) == 12
    with pytest.raises(InputError, match="same object first"):
        Amber().measures("ours")


def test_a_question_without_its_truth_is_a_problem(tmp_path):
    shutil.copytree(DATA, tmp_path / "data")
    path = tmp_path / "data" / "annotations.json"
    rows = json.loads(path.read_text(encoding="utf-8"))
    rows[4]["type"] = "discriminative-attribute-colour"
    path.write_text(json.dumps(rows[:-1]), encoding="utf-8")
    problems = Amber().load(tmp_path).problems
    assert [problem.what for problem in problems][1:] == ["annotations.json has no entry for the id 14"]
    assert problems[0].line == 22  # where the entry of the question stands
