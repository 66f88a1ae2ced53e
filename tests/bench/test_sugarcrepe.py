"""SugarCrepe in both orders: what position alone earns, and how choices are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from lvlm_guard.bench.items import AnsweredItem
from lvlm_guard.bench.suites.sugarcrepe import SugarCrepe, parse_choice

DATA = Path(__file__).parent / "data" / "sugarcrepe"


def scores(said):
    return {measure.name: measure.value(said) for measure in SugarCrepe().measures("ours")}


@pytest.fixture
def items():
    return SugarCrepe().load(DATA).items


def test_every_row_is_asked_in_both_orders(items):
    assert len(items) == 20
    first, second = items[:2]
    assert "(1) A kettle on a stove.\n (2) A kettle and a harp on a stove." in first.prompt
    assert "(1) A kettle and a harp on a stove.\n (2) A kettle on a stove." in second.prompt
    assert (first.truth, second.truth, first.image) == ("1", "2", "000000000500.jpg")
    assert {item.kind: item.level for item in items} == {
        "add_obj": "object", "swap_att": "attribute", "replace_rel": "relation",
    }  # fmt: skip


def test_position_alone_earns_half_the_answers_and_no_row(items):
    measured = scores([AnsweredItem(item, "(1)") for item in items])
    assert measured["accuracy"] == pytest.approx(1 / 2)
    assert measured["accuracy_positive_first"] == 1
    assert measured["accuracy_negative_first"] == 0
    assert measured["pair_accuracy"] == 0
    assert measured["first_ratio"] == 1


def test_a_row_is_right_when_both_orders_are(items):
    texts = [f"({item.truth})" for item in items]
    texts[0] = "(2)"  # the first row in one order
    measured = scores([AnsweredItem(item, text) for item, text in zip(items, texts, strict=True)])
    assert measured["accuracy"] == pytest.approx(19 / 20)
    assert measured["pair_accuracy"] == pytest.approx(9 / 10)
    assert measured["pair_accuracy_object"] == pytest.approx(3 / 4)
    assert measured["pair_accuracy_replace_rel"] == 1
    assert measured["first_ratio"] == pytest.approx(9 / 20)


def test_the_official_table_has_a_column_for_each_order(items):
    official = SugarCrepe().official([AnsweredItem(item, "(1)") for item in items], "ours")
    assert (official["swap_att/positive-first"], official["swap_att/negative-first"]) == (1, 0)
    assert official["swap_obj/positive-first"] is None


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("(1)", "1"),
        ("2", "2"),
        ("Caption (2) is the better one, in 1 word.", "2"),
        ("Option 1.", "1"),
        ("A red mug on a green tray", "1"),
        ("I choose: A GREEN mug on a red tray.", "2"),
        ("(1) or (2)", None),
        ("12", None),
        ("neither", None),
        ("", None),
    ],
)
def test_a_choice_is_a_number_or_a_whole_caption(text, chosen):
    assert parse_choice(text, ["A red mug on a green tray.", "A green mug on a red tray."]) == chosen
