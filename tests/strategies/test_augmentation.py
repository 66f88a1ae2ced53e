"""Changed pictures, evidence and revisions, each against the same by hand."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from against_twin import ARCHITECTURES, check
from gold import SUPPRESSED
from lvlm_guard_augmentation import Evidence, Revise, Transform
from lvlm_guard_augmentation.revise import remove_pieces
from PIL import Image
from toy_processor import toy_processor
from twin import Twin

from lvlm_guard import Guard, InputError, ProcessorNeeded
from lvlm_guard.request.images import generator_for
from lvlm_guard.strategy.prompt import ModelInfo
from lvlm_guard.testing import StrategyContract, tiny
from lvlm_guard.testing.contract import Words

pytestmark = pytest.mark.filterwarnings("ignore:.*changed no logit.*")


class TestNoise(StrategyContract):
    strategy = Transform(strength=1.0)


def pictures(count=2):
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 255, (30, 30, 3), dtype=np.uint8)) for _ in range(count)]


PROMPTS = ["a <image> b c d", "a b <image> e"]


def run(strategies, shown, prompts=PROMPTS, tokens=4):
    model, _ = tiny("llava")
    guard = Guard(model, toy_processor(), list(strategies))
    inputs = guard.inputs(images=shown, text=prompts)
    settings = {"max_new_tokens": tokens, "do_sample": False, "suppress_tokens": SUPPRESSED}
    return inputs, guard.generate(**inputs, **settings, output_logits=True, return_dict_in_generate=True)


def logits(output):
    return torch.stack(output.logits)


@pytest.mark.parametrize("kind", ["blur", "crop", "mask"])
def test_a_transformed_picture_is_that_picture(kind):
    strategy, shown = Transform(kind=kind, strength=0.6, seed=3), pictures()
    inputs, got = run([strategy], shown)
    change = {"blur": strategy._blur, "crop": strategy._crop, "mask": strategy._mask}[kind]
    changed = [change(one, generator_for(torch.from_numpy(np.asarray(one).copy()), 3)) for one in shown]
    assert all(one.size == (30, 30) for one in changed)
    _, hand = run([], changed)
    assert torch.allclose(logits(got), logits(hand), atol=1e-4)
    plain = run([], shown)[1]
    assert float((got.logits[0] - plain.logits[0]).abs().max()) > 0.1
    assert torch.equal(got.sequences[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])


def test_noise_is_the_stated_noise():
    strategy, pixels = Transform(strength=0.5, seed=1), torch.zeros(3, 40, 40)
    noised = strategy._add_noise(pixels, torch.Generator().manual_seed(0))
    assert float(noised.std()) == pytest.approx(0.5, rel=0.05)


def test_a_mask_hides_its_share():
    masked = Transform(kind="mask", strength=0.25)._mask(Image.new("RGB", (64, 64), (255, 0, 0)), torch.Generator())
    assert float((np.asarray(masked) == 128).all(-1).mean()) == pytest.approx(0.25)


@pytest.mark.parametrize("strategy", [Transform(strength=0.0), Evidence()])
def test_neutral_is_plain(strategy):
    shown = pictures()
    assert torch.equal(logits(run([strategy], shown)[1]), logits(run([], shown)[1]))


def test_revise_is_neutral_without_rounds():
    model, inputs = tiny("llava")
    settings = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    whole = Guard(model, Words(), [Revise(rounds=0)]).generate(**inputs, **settings)
    assert len(whole.logits) == 4  # what a revision refuses, a neutral one does not
    got = Guard(model, Words(), [Revise(rounds=0)]).generate(**inputs, max_new_tokens=4, do_sample=False)
    assert torch.equal(got, model.generate(**inputs, max_new_tokens=4, do_sample=False))


def telling(picture, question):
    return "w9 w11" if question == "b c d" else ""


def test_text_stands_before_the_question_of_its_row():
    shown = pictures()
    _, got = run([Evidence(source=telling)], shown)
    _, hand = run([], shown, ["a <image> w9 w11 b c d", "a b <image> e"])
    assert torch.allclose(logits(got), logits(hand), atol=1e-4)
    assert float((got.logits[0] - run([], shown)[1].logits[0])[0].abs().max()) > 0.1


def test_boxes_become_sentences_and_a_crop():
    shown = pictures()

    def boxes(picture, question):
        return [(2, 3, 20, 21.4, "w9"), (1, 5, 10, 30, "w11")] if picture.tobytes() == shown[0].tobytes() else []

    _, got = run([Evidence(source=boxes, sentence="there {} w12", crop=True)], shown)
    cut = shown[0].crop((1, 3, 20, 30)).resize((30, 30))
    _, hand = run([], [cut, shown[1]], ["a <image> there w9 w12 there w11 w12 b c d", "a b <image> e"])
    assert torch.allclose(logits(got), logits(hand), atol=1e-4)


def hanging(*_):
    time.sleep(3)


def raising(*_):
    raise RuntimeError("no detector")


@pytest.mark.parametrize(("source", "message"), [
    (hanging, "source hanging did not answer within 0.1 s"),
    (raising, "source raising raised RuntimeError: no detector"),
    (lambda picture, question: [(1, 2, 3)], "text or boxes"),
    (lambda picture, question: 7, "text or boxes"),
    (lambda picture, question: [(40, 40, 50, 50, "w9")], "inside the picture"),
    ("nowhere.at:all", "cannot be imported"),
])  # fmt: skip
def test_a_bad_source_is_named(source, message):
    begun = time.monotonic()
    with pytest.raises(InputError, match=message):
        run([Evidence(source=source, timeout=0.1, crop=True)], pictures())
    assert time.monotonic() - begun < 2.5


def test_evidence_needs_pictures():
    model, inputs = tiny("llava")
    with pytest.raises(ProcessorNeeded, match=r"guard\.inputs"):
        Guard(model, Words(), [Evidence(source=telling)]).generate(**inputs, max_new_tokens=2)


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
        self.output_ids, self.model = range(len(texts)), ModelInfo(tokenizer=self)

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


def test_a_splitter_of_ones_own():
    gen = Recalling(["w9 w11 . w12"], ["eleven"])
    gen.call_user_function = lambda function, *arguments, what, timeout: function(*arguments)
    own = Revise(splitter=lambda sentence: [("w11", "eleven?")] if "w11" in sentence else [])
    assert [one.text for one in own.finish(gen)] == ["w12"]
    with pytest.raises(InputError, match="pieces of"):
        list(Revise(splitter=lambda sentence: [("w99", "?")]).finish(gen))


def test_revise_asks_the_guarded_model_and_ends_the_answer():
    model, _ = tiny("llava")
    plain = run([], pictures())[1].sequences
    own = Revise(splitter=lambda sentence: [(sentence.strip(), "a b ?")])
    guard = Guard(model, toy_processor(), [own])
    inputs = guard.inputs(images=pictures(), text=PROMPTS)
    got = guard.generate(**inputs, max_new_tokens=4, do_sample=False, suppress_tokens=SUPPRESSED)
    assert torch.equal(got, plain)  # a random model never says no


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_noise_is_noise_on_the_pixels(architecture):
    def noised(inputs):
        pixels = inputs["pixel_values"]
        tile = pixels.reshape(16, 3, 2, 16) if architecture == "qwen2_vl" else pixels[0]  # patches: channels, frames
        noise = torch.randn(tile.shape, generator=generator_for(tile, 4))
        return {**inputs, "pixel_values": (tile + noise).reshape(pixels.shape)}

    def gold(model, inputs, prefix):
        return Twin(model).next(noised(inputs), prefix), Twin(model).next(inputs, prefix)

    check([Transform(kind="noise", strength=1.0, seed=4)], gold, architecture)
