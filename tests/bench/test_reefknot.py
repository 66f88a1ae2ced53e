"""Reefknot's three files, its pairs and choices, and the figures of the scripts in its repository."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lvlm_guard.bench.items import AnsweredItem
from lvlm_guard.bench.suites.reefknot import Reefknot, parse_choice
from lvlm_guard.errors import InputError

DATA = Path(__file__).parent / "data" / "reefknot"


def answered(texts, part="yesno"):
    return [AnsweredItem(item, text) for item, text in zip(Reefknot(part).load(DATA).items, texts, strict=True)]


def scores(said, parser):
    return {measure.name: measure.value(said) for measure in Reefknot().measures(parser)}


def test_yes_no_and_choice_are_read_and_free_answers_on_demand():
    items = Reefknot().load(DATA).items
    assert {kind: sum(item.kind == kind for item in items) for kind in ("yesno", "choice")} == {
        "yesno": 10,
        "choice": 10,
    }
    assert items[0].image == "900.jpg"
    assert items[10].extra["options"] == {"A": "on", "B": "towing", "C": "lifting", "D": "counting"}
    assert [item.kind for item in Reefknot("free").load(DATA).items] == ["free"] * 10
    assert {item.level for item in items} == {"relation"}


def test_pairs_need_both_answers_and_relations_are_told_apart():
    said = answered(["Yes", "No"] * 3 + ["No", "No"] + ["Yes", "Yes"])  # the fourth pair is cognitive
    measured = scores(said, "ours")
    assert measured["accuracy"] == pytest.approx(8 / 10)
    assert measured["pair_accuracy"] == pytest.approx(3 / 5)
    assert measured["accuracy_cognitive"] == pytest.approx(3 / 4)
    assert measured["accuracy_perception"] == pytest.approx(5 / 6)
    official = Reefknot().official(said, "official")
    assert (official["yesno/accuracy"], official["yesno/yes_rate"]) == (0.8, 0.5)
    assert (official["pair/accuracy_yes"], official["pair/accuracy_no"], official["pair/accuracy"]) == (0.8, 0.8, 0.6)


def test_the_official_script_reads_the_second_of_a_pair_by_another_rule():
    official = Reefknot().official(answered(["Yes", "I know it is"] * 5), "official")
    assert official["pair/accuracy"] == 1.0  # "know" holds a no
    assert Reefknot().official(answered(["Yes", "I know it is"] * 5), "ours")["pair/accuracy"] == 0.0
    assert official["yesno/accuracy"] == 1.0  # and nothing that holds no yes is a yes
    vague = Reefknot().official(answered(["Yes", "Certainly"] * 5), "official")
    assert (vague["yesno/accuracy"], vague["pair/accuracy"]) == (1.0, 0.0)  # a no on its own, a yes in a pair


def test_a_torn_pair_has_no_official_figure():
    assert Reefknot().official(answered(["Yes", "No"] * 5)[:-1], "official")["pair/accuracy"] is None


def test_choices_are_scored_by_letter_or_by_the_only_option_named():
    letters = [item.truth for item in Reefknot("choice").load(DATA).items]
    assert scores(answered(letters, "choice"), "ours")["accuracy_choice"] == 1
    told = answered([f"({letter}) it is" if at else "on" for at, letter in enumerate(letters)], "choice")
    assert scores(told, "ours")["accuracy_choice"] == 1
    assert scores(told, "official")["accuracy_choice"] == 0  # the first character is a bracket, or an o
    assert Reefknot().official(answered([""] * 10, "choice"), "official")["choice/accuracy"] is None


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("b.", "B"),
        (" C. holding", "C"),
        ("(D)", "D"),
        ("**A**", "A"),
        ("A man is behind the gate.", "A"),
        ("A cat is towing it.", "B"),
        ("The answer is holding", "C"),
        ("It is behind or towing.", None),
        ("Because it is there", None),
        ("", None),
    ],
)
def test_a_letter_is_an_answer_only_where_it_is_no_word(text, letter):
    assert parse_choice(text, {"A": "behind", "B": "towing", "C": "holding", "D": "on top"}) == letter


def test_free_answers_are_exported_in_the_official_shape(tmp_path):
    said = answered([f"answer {at}" for at in range(10)], "free")
    Reefknot("free").export(said, tmp_path / "out.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    official = [json.loads(line) for line in (DATA / "VQA.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows == [{**row, "response": f"answer {at}"} for at, row in enumerate(official)]
    with pytest.raises(InputError, match="could not be written"):
        Reefknot("free").export(said, tmp_path / "nowhere" / "out.jsonl")
