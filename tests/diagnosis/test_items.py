"""Known items: how they are dealt, and where their answers are."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from lvlm_guard import testbed
from lvlm_guard.diagnosis import KnownItem, diagnose_model, load_known_items, measure_profile
from lvlm_guard.diagnosis.model.items import deal, encode, take_turns
from lvlm_guard.errors import InputError
from lvlm_guard.testbed.suite import Scenes


@pytest.fixture(scope="module")
def loaded():
    return testbed.load()


@pytest.fixture(scope="module")
def items():
    return load_known_items(Scenes(split="calibration", count=30, seed=3), 120)


def test_any_run_holds_about_the_same_share_of_each_kind():
    kinds = ["a"] * 60 + ["b"] * 30 + ["c"] * 10
    order = take_turns(kinds)
    assert sorted(order) == list(range(100))
    for start in range(0, 100, 20):
        counts = Counter(kinds[at] for at in order[start : start + 20])
        assert (counts["a"], counts["b"]) == (pytest.approx(12, abs=1), pytest.approx(6, abs=1))


def test_batteries_are_whole_and_alike(items):
    batteries = deal(items)
    assert [len(battery) for battery in batteries] == [24] * 5
    captions = [sum(item.is_caption for item in battery) for battery in batteries]
    assert min(captions) >= 1
    assert max(captions) - min(captions) <= 1


def test_predicting_positions_are_those_before_the_words_of_the_answer(loaded, items):
    model, processor = loaded
    chosen = [next(item for item in items if item.is_caption), next(item for item in items if not item.is_caption)]
    encoded = encode(model, processor, chosen)
    for row, item in enumerate(chosen):
        words = processor.tokenizer(item.answer, add_special_tokens=False)["input_ids"]
        assert encoded.targets[row][encoded.predicting[row]].tolist() == words
    assert encoded.window == int(encoded.predicting.sum(1).max()) + 1


def test_swapped_items_have_other_pictures(loaded, items):
    model, processor = loaded
    chosen = [items[0], replace(items[1], picture=items[0].picture), items[2]]
    own, swapped = (encode(model, processor, chosen, swapped=swap) for swap in (False, True))
    pixels = own.inputs[own.pixels]
    assert torch.equal(swapped.inputs[own.pixels], pixels[[2, 2, 0]])
    assert not torch.equal(pixels[0], pixels[2])
    assert torch.equal(swapped.inputs["input_ids"], own.inputs["input_ids"])


def test_one_picture_cannot_be_swapped(loaded, items):
    alike = [replace(item, picture=items[0].picture) for item in items[:3]]
    with pytest.raises(InputError, match="about one picture"):
        encode(*loaded, alike, swapped=True)


def test_items_of_a_battery_are_about_many_pictures(items):
    for battery in deal(items):
        assert len({item.picture.tobytes() for item in battery}) >= 12


@pytest.mark.parametrize(
    ("change", "message"),
    [({"picture": None}, "has no picture"), ({"answer": " "}, "has no true answer")],
)
def test_items_that_cannot_be_used_are_refused(loaded, items, change, message):
    with pytest.raises(InputError, match=message):
        diagnose_model(*loaded, [replace(items[0], **change), *items[1:3]])


def test_no_items_are_refused(loaded):
    with pytest.raises(InputError, match="needs known items"):
        diagnose_model(*loaded, [])


def test_few_items_make_no_profile(loaded, items):
    with pytest.raises(InputError, match="at least 600 known items, got 120"):
        measure_profile(*loaded, items)


def test_a_processor_without_a_chat_template_is_refused(loaded, items):
    class Bare:
        chat_template = None

    with pytest.raises(InputError, match="no chat template"):
        diagnose_model(loaded[0], Bare(), items[:2])


def test_a_suite_with_too_few_items_is_refused():
    with pytest.raises(InputError, match="5000 are needed"):
        load_known_items(Scenes(split="calibration", count=5), 5000)


def test_text_alone_is_left_out_of_a_suite():
    class Texts(Scenes):
        def load(self, data):
            loaded = super().load(data)
            return replace(loaded, items=[replace(item, image=None, cluster="x") for item in loaded.items])

    with pytest.raises(InputError, match="has 0 items with a picture"):
        load_known_items(Texts(split="calibration", count=5))


def test_a_known_item_is_a_plain_value():
    item = KnownItem("picture.png", "what?", "that")
    assert (item.kind, item.is_caption) == ("", False)
