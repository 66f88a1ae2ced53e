"""The answer loses every claim for which the guarded model answers no to the question about it; repeated for each round."""

from __future__ import annotations

import math
import re

import pytest
import torch
from against_twin import ARCHITECTURES, OF_STRATEGIES
from coloured_pictures import PROMPTS, draw_pictures, run
from edited_prompts import make_inputs
from gold import OLD, SUPPRESSED
from lvlm_guard_augmentation import Revise
from lvlm_guard_augmentation.revise import remove_pieces
from toy_processor import toy_processor
from twin import Twin

from lvlm_guard import Guard, InputError
from lvlm_guard.strategy.prompt import ModelInfo
from lvlm_guard.testing import SequenceContract, TinyProcessor, tiny
from lvlm_guard.testing.contract import Words
from lvlm_guard.testing.sequences import TEXTS, pictures

pytestmark = pytest.mark.filterwarnings("ignore:.*changed no logit.*")


def claim_sentences(sentence):
    """Each sentence is one claim."""
    return [(sentence.strip(), f"w14 {sentence.strip()}")]


REVISE = Revise(splitter=claim_sentences)


class TestRevise(SequenceContract):
    strategy = REVISE
    architectures = ("llava", "gemma3") if OLD else ARCHITECTURES  # with its other weights that model denies nothing
    explosions = (3, SequenceContract.tokens + 3)  # in the answer, and in an answer to a question about it


def decode_greedily(model, inputs, tokens, forbidden=(), until=lambda token: False):
    """Tokens of one prompt, run whole at each step."""
    said = []
    while len(said) < tokens and not (said and until(said[-1])):
        logits = Twin(model).next(inputs, said)
        logits[list(forbidden)] = -math.inf
        said.append(int(logits.argmax()))
    return said


def revise_by_hand(architecture, model, picture, text, tokens):
    """The answer without the sentences that the model denies, and how many it denies and keeps."""
    tokenizer = TinyProcessor(architecture).tokenizer
    answer = decode_greedily(model, make_inputs(architecture, picture, text), tokens, SUPPRESSED)
    kept, denied, counts, sentence = [], False, [0, 0], []
    for index, token in enumerate(answer):
        sentence.append(token)
        if tokenizer.decode([token]).endswith(".") or index == len(answer) - 1:
            asked = f"user <image> w14 {tokenizer.decode(sentence)}"
            reply = decode_greedily(
                model, make_inputs(architecture, picture, asked), 16, until=lambda one: tokenizer.decode([one])
            )
            no = re.match("no-", tokenizer.decode(reply))
            counts[bool(no)] += 1
            kept += [] if no else [one for one in sentence if tokenizer.decode([one])]
            denied, sentence = denied or bool(no), []
    return (kept if denied else answer), counts


@pytest.mark.parametrize("architecture", OF_STRATEGIES)
def test_revise_drops_what_the_model_denies(architecture):
    model, _ = tiny(architecture)
    guard = Guard(model, TinyProcessor(architecture), [REVISE])
    inputs = guard.inputs(images=pictures(), text=TEXTS)
    got = guard.generate(**inputs, max_new_tokens=8, do_sample=False, suppress_tokens=SUPPRESSED)
    counts = []
    for row, (picture, text) in enumerate(zip(pictures(), TEXTS, strict=True)):
        wanted, count = revise_by_hand(architecture, model, picture, text, 8)
        new = got[row, inputs["input_ids"].shape[1] :].tolist()
        assert new == wanted + [0] * (len(new) - len(wanted))
        counts.append(count)
    kept, denied = (sum(one) for one in zip(*counts, strict=True))
    print(f"{architecture}: {kept} sentences kept, {denied} denied")
    assert OLD or denied  # versions draw other random weights


def test_revise_is_neutral_without_rounds():
    model, inputs = tiny("llava")
    settings = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    whole = Guard(model, Words(), [Revise(rounds=0)]).generate(**inputs, **settings)
    assert len(whole.logits) == 4  # what a revision refuses, a neutral one does not
    got = Guard(model, Words(), [Revise(rounds=0)]).generate(**inputs, max_new_tokens=4, do_sample=False)
    assert torch.equal(got, model.generate(**inputs, max_new_tokens=4, do_sample=False))


@pytest.mark.parametrize(("sentence", "pieces", "denied", "wanted"), [
    ("there is a mug , a red egg and a pan .", ["a mug", "a red egg", "a pan"], ["a red egg"], "there is a mug and a pan ."),
    ("I see a mug, a egg, and a pan.", ["a mug", "a egg", "a pan"], ["a pan"], "I see a mug, and a egg."),
    ("there is a mug and a pan .", ["a mug", "a pan"], ["a mug"], "there is a pan ."),
    ("a mug and a pan .", ["a mug", "a pan"], ["a mug", "a pan"], ""),
    ("A man rides a horse.", ["A man", "a horse"], ["a horse"], ""),
    ("A man rides a horse.", ["A man", "a horse"], [], "A man rides a horse."),
])  # fmt: skip
def test_what_is_denied_goes(sentence, pieces, denied, wanted):
    assert remove_pieces(sentence, pieces, denied) == wanted


def test_claims_are_phrases_with_an_article():
    text = "in this kitchen there is a red mug , an old white egg and a pan on the table ."
    assert [asked for _, asked in Revise(question="{}?")._claims(None, text)] == ["mug?", "egg?", "pan?"]
    assert Revise()._claims(None, "nothing to see here .") == []


class Recalling:
    """A stand-in for a guarded call: what was said, and who denies what."""

    def __init__(self, texts, denied):
        self.texts, self.denied, self.asked = texts, denied, []
        self.output_ids, self.model, self.results = range(len(texts)), ModelInfo(tokenizer=self), {}

    def decode(self, row, **_):
        return self.texts[row]

    def ask(self, questions, row):
        self.asked.append((row, list(questions)))
        return ["No." if any(word in one for word in self.denied) else "yes" for one in questions]


def test_revisions_of_the_rows_where_something_was_denied():
    texts = ["There is a mug, a pan and a mug. A egg is on a mug.", "there is a pan .", "none ."]
    gen = Recalling(texts, ["egg", "pan"])
    found = {one.row: one.text for one in Revise(question="a {}?").finish(gen)}
    assert found == {0: "There is a mug and a mug.", 1: ""}
    assert gen.asked[0] == (0, ["a mug?", "a pan?", "a egg?"])
    assert [record["decision"] for record in gen.results["revise"][0]] == ["kept", "dropped", "kept", "dropped", "kept"]


def test_a_splitter_of_ones_own():
    gen = Recalling(["w9 w11 . w12"], ["eleven"])
    gen.call_user_function = lambda function, *arguments, what, timeout: function(*arguments)
    own = Revise(splitter=lambda sentence: [("w11", "eleven?")] if "w11" in sentence else [])
    assert [one.text for one in own.finish(gen)] == ["w12"]
    with pytest.raises(InputError, match="pieces of"):
        list(Revise(splitter=lambda sentence: [("w99", "?")]).finish(gen))


def test_revise_asks_the_guarded_model_and_ends_the_answer():
    model, _ = tiny("llava")
    plain = run([], draw_pictures())[1].sequences
    own = Revise(splitter=lambda sentence: [(sentence.strip(), "a b ?")])
    guard = Guard(model, toy_processor(), [own])
    inputs = guard.inputs(images=draw_pictures(), text=PROMPTS)
    got = guard.generate(**inputs, max_new_tokens=4, do_sample=False, suppress_tokens=SUPPRESSED)
    assert torch.equal(got, plain)  # a random model never says no
