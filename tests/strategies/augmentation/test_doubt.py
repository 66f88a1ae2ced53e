"""The doubt of a word is `sigmoid(-margin)` of the question about it, else `1 - exp(-entropy)` where its first token was chosen.

Both equal a recompute by hand, and the answer is plain generate's, bit for bit.
"""

from __future__ import annotations

import math
import re
import threading
from typing import ClassVar

import pytest
import torch
from lvlm_guard_augmentation.answer_words import find_ends, split_words
from lvlm_guard_augmentation.claims import Wording
from lvlm_guard_augmentation.doubt import Doubt, doubt_entropy, doubt_margin
from lvlm_guard_augmentation.word_claims import find_word_claims
from versions import need_threads

from lvlm_guard import Guard, InputError, ProcessorNeeded
from lvlm_guard.strategy.answer_words import NO, YES, subtract_logits
from lvlm_guard.testing import ObserverContract, TinyProcessor, tiny
from lvlm_guard.testing.intact import fingerprint
from lvlm_guard.testing.recompute import next_logits
from lvlm_guard.testing.sequences import Companion, pictures

TEXTS = ["w9 <image> w21 w33", "<image> w30"]
WORDING = Wording("Is there a {}?", "Is the {name} {value}?", "Is the {name} {direction} the {reference}?")
NUMBER = "Are there {number} {name}?"
PLAIN = {"max_new_tokens": 5, "do_sample": False}
pytestmark = pytest.mark.filterwarnings("ignore:.*changed no logit.*")


def read_each_second(text):
    matches = list(re.finditer(r"[^ .]+", text))[::2]
    return [(*match.span(), "object", f"w14 {match[0]} w{number + 20}") for number, match in enumerate(matches)]


class TestDoubt(ObserverContract):
    strategy = Doubt(ask=True, reader=read_each_second)
    architectures = ("llava", "qwen2_vl")
    tokens = 4


def make_guard(architecture="llava", *others, **parameters):
    model, _ = tiny(architecture)
    guard = Guard(model, TinyProcessor(architecture), [*others, Doubt(**parameters)])
    return guard, guard.inputs(images=pictures(2), text=TEXTS)


def find_words(text, level=None):
    claims = find_word_claims(text, WORDING, NUMBER, ("red", "white"))
    return [
        (text[claim.start : claim.end], claim.level, claim.question) for claim in claims if level in (None, claim.level)
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("There is a red mug.", [("red", "attribute", "Is the mug red?"), ("mug", "object", "Is there a mug?")]),
        ("The image shows the man .", [("man", "object", "Is there a man?")]),
        (
            "Two mugs and three white plates.",
            [
                ("Two", "number", "Are there two mugs?"),
                ("mugs", "object", "Is there a mugs?"),
                ("three", "number", "Are there three plates?"),
                ("white", "attribute", "Is the plates white?"),
                ("plates", "object", "Is there a plates?"),
            ],
        ),
        ("Nothing to see.", []),
    ],
)
def test_words_are_read_with_their_levels(text, expected):
    assert find_words(text) == expected


def test_a_relation_belongs_to_the_word_of_its_direction():
    text = "A cat. The mug is to the left of the plate."
    assert find_words(text, "relation") == [("left", "relation", "Is the mug left of the plate?")]
    assert [word for word, _, _ in find_words(text, "object")] == ["cat", "mug", "plate"]


def test_equal_sentences_have_their_own_places():
    text = "A mug. A mug."
    assert [claim.start for claim in find_word_claims(text, WORDING, NUMBER, ())] == [2, 9]


class Pieces:
    """A tokenizer whose tokens are pieces of bytes."""

    def __init__(self, *pieces, tidy=False):
        self.pieces, self.tidy = pieces, tidy

    def decode(self, ids, **_):
        text = b"".join(self.pieces[token] for token in ids).decode("utf-8", "replace")
        return text.replace(" ,", ",") if self.tidy else text


@pytest.mark.parametrize("tidy", [False, True])
def test_words_know_their_tokens(tidy):
    tokenizer = Pieces(b"a", b" mu", b"g", b" ,", b" caf\xc3", b"\xa9", b"s a", b"b c", tidy=tidy)
    ids = list(range(8))
    text, words = split_words(tokenizer, ids)
    comma = "," if tidy else " ,"
    assert text == f"a mug{comma} caf\u00e9s ab c"
    assert [(word.text, word.first, word.tokens) for word in words] == [
        ("a", 0, 1), ("mug", 1, 2), ("caf\u00e9s", 4, 3), ("ab", 6, 2), ("c", 7, 1),
    ]  # fmt: skip
    assert all(text[word.start : word.end] == word.text for word in words)
    assert find_ends(tokenizer, ids)[-1] == len(text)
    assert split_words(tokenizer, []) == ("", [])


def test_a_long_answer_is_read_in_time_by_its_length():
    class Counting(Pieces):
        characters = 0

        def decode(self, ids, **options):
            type(self).characters += len(ids)
            return super().decode(ids, **options)

    ids = [0] * 5000
    assert len(split_words(Counting(b" mug"), ids)[1]) == 5000
    assert Counting.characters < 20 * len(ids)


def test_doubts_are_in_bounds_and_middling_where_nothing_is_known():
    assert doubt_margin(0) == doubt_entropy(math.log(2)) == pytest.approx(0.5)
    assert doubt_margin(1e6) < 1e-9 < 1 - 1e-9 < doubt_margin(-1e6)
    assert doubt_entropy(0.0) == doubt_entropy(-1e-9) == 0.0


@pytest.mark.parametrize("architecture", ["llava", "qwen2_vl"])
@pytest.mark.parametrize("others", [(), (Companion(),)])
def test_entropies_are_those_of_what_generate_receives(architecture, others):
    guard, inputs = make_guard(architecture, *others)
    received = guard.generate(**inputs, **PLAIN, output_logits=True, return_dict_in_generate=True)
    distribution = torch.stack(received.logits, dim=1).double().softmax(-1)
    entropies = torch.special.entr(distribution).sum(-1)
    rows = guard.report.results["doubt"]
    for row, expected, best in zip(rows, entropies, distribution.amax(-1), strict=True):
        for word in row["words"]:
            assert word["entropy"] == pytest.approx(float(expected[word["first_token"]]), abs=1e-4)
            assert word["max_probability"] == pytest.approx(float(best[word["first_token"]]), abs=1e-4)
            assert word["doubt"] == doubt_entropy(word["entropy"])
            assert word["by"] == "entropy"
        assert row["not_asked"] == "ask is off"
    assert any(row["words"] for row in rows)
    assert float(entropies.std()) > 0.01


@pytest.mark.parametrize("architecture", ["llava", "gemma3"])
def test_margins_are_those_of_the_question_asked_by_itself(architecture):
    guard, inputs = make_guard(architecture, ask=True, reader=read_each_second)
    guard.generate(**inputs, **PLAIN)
    margins = []
    for row, picture in zip(guard.report.results["doubt"], pictures(2), strict=True):
        for number, word in enumerate(row["words"]):
            if number % 2:
                assert (word["by"], word["level"]) == ("entropy", None)
                continue
            question = guard.inputs(images=[picture], text=[f"user <image> {word['question']}"])
            logits = next_logits(guard.model, dict(question), ())
            (expected,) = subtract_logits(
                logits[None], lambda text: guard.processor.tokenizer(text)["input_ids"], 3, YES, NO
            )
            assert word["margin"] == pytest.approx(expected, abs=1e-4)
            assert word["doubt"] == doubt_margin(word["margin"])
            margins.append(expected)
    assert torch.tensor(margins).std() > 0.01


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_beams": 3},
        {"num_beams": 3, "num_return_sequences": 2},
        {"do_sample": True, "num_return_sequences": 2},
        {"return_dict_in_generate": True, "output_scores": True},
    ],
)
def test_the_answer_is_plain_generates(settings):
    guard, inputs = make_guard(ask=True, reader=read_each_second)
    torch.manual_seed(0)
    plain = guard.model.generate(**inputs, **{**PLAIN, **settings})
    before = fingerprint(guard.model)
    torch.manual_seed(0)
    guarded = guard.generate(**inputs, **{**PLAIN, **settings})
    ids, expected = (getattr(output, "sequences", output) for output in (guarded, plain))
    assert torch.equal(ids, expected)
    assert fingerprint(guard.model) == before
    rows, start = guard.report.results["doubt"], inputs["input_ids"].shape[1]
    assert [row["text"] for row in rows] == [guard.processor.tokenizer.decode(row[start:]) for row in ids]
    assert [row["request"] for row in rows] == [number * 2 // len(rows) for number in range(len(rows))]
    assert not guard.report.strategies[0].had_effect


def test_under_beams_entropies_are_of_the_returned_path():
    guard, inputs = make_guard()
    ids = guard.generate(**inputs, **{**PLAIN, "num_beams": 3})
    single = guard.inputs(images=pictures(2)[:1], text=TEXTS[:1])
    answer = ids[0, inputs["input_ids"].shape[1] :].tolist()
    words = guard.report.results["doubt"][0]["words"]
    for word in words:
        logits = next_logits(guard.model, dict(single), answer[: word["first_token"]]).double()
        expected = float(torch.special.entr(logits.softmax(-1)).sum())
        assert word["entropy"] == pytest.approx(expected, abs=1e-4)
    assert len(words) > 1


def test_a_streamer_streams():
    guard, _ = make_guard(ask=True, reader=read_each_second)
    inputs = guard.inputs(images=pictures(1), text=TEXTS[:1])

    class Streamer:
        tokens: ClassVar[list[int]] = []

        def put(self, value):
            self.tokens += value.flatten().tolist()

        def end(self):
            pass

    output = guard.generate(**inputs, **PLAIN, streamer=Streamer())
    assert Streamer.tokens == output[0].tolist()
    assert guard.report.results["doubt"][0]["words"]


def test_fewer_questions_are_asked_where_there_is_a_limit():
    guard, inputs = make_guard(ask=True, reader=read_each_second, most=1)
    guard.generate(**inputs, **PLAIN)
    row = guard.report.results["doubt"][0]
    asked = [word for word in row["words"] if word["by"] == "margin"]
    about = [word for word in row["words"] if word["question"] is not None]
    assert "more than 1 questions" in row["not_asked"]
    assert len({word["question"] for word in asked}) == 1 < len({word["question"] for word in about})
    assert max(about, key=lambda word: word["entropy"]) in asked


def test_without_the_picture_words_are_not_asked_about_and_the_answer_stays():
    model, inputs = tiny("llava")
    guard = Guard(model, TinyProcessor("llava"), [Doubt(ask=True, reader=read_each_second)])
    output = guard.generate(**inputs, **PLAIN)
    assert torch.equal(output, model.generate(**inputs, **PLAIN))
    row = guard.report.results["doubt"][0]
    assert "ProcessorNeeded" in row["not_asked"] or "InputError" in row["not_asked"]
    assert {word["by"] for word in row["words"]} == {"entropy"}


def test_a_reader_that_returns_something_else_is_named():
    guard, inputs = make_guard(reader=lambda text: [(0, 1, "colour", "w1")])
    with pytest.raises(InputError, match="'doubt' needs"):
        guard.generate(**inputs, **PLAIN)


def test_it_needs_a_tokenizer():
    model, inputs = tiny("llava")
    with pytest.raises(ProcessorNeeded, match="'doubt' needs a tokenizer"):
        Guard(model, None, "doubt").generate(**inputs, **PLAIN)


def test_threads_have_their_own_doubts():
    guard, inputs = make_guard(ask=True, reader=read_each_second)
    guard.generate(**inputs, **PLAIN)
    need_threads(guard.model)
    expected, results = guard.report.results["doubt"], []

    def run():
        guard.generate(**inputs, **PLAIN)
        results.append(guard.report.results["doubt"])

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected, expected]
