"""The prompt gains `source(picture, question)` after the image, as text or a sentence per box; the crop holds all boxes."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from against_twin import OF_STRATEGIES
from coloured_pictures import draw_pictures, logits, run
from edited_prompts import check_by_hand
from lvlm_guard_augmentation import Evidence
from PIL import Image

from lvlm_guard import Guard, InputError, ProcessorNeeded
from lvlm_guard.testing import SequenceContract, TinyProcessor, tiny
from lvlm_guard.testing.contract import Words
from lvlm_guard.testing.sequences import SIDE, pictures

pytestmark = pytest.mark.filterwarnings("ignore:.*changed no logit.*")


def name_shade(picture, question):
    """Evidence that depends on the picture and the question."""
    return f"w{10 + round(float(np.asarray(picture).mean())) % 50} w{20 + len(question)}"


class TestEvidence(SequenceContract):
    strategy = Evidence(source=name_shade)


def read_question(text):
    """The question of a prompt, in the tokenizer's own words."""
    tokenizer = TinyProcessor("llava").tokenizer
    return tokenizer.decode(tokenizer(text.split("<image>")[1])["input_ids"])


@pytest.mark.parametrize("architecture", OF_STRATEGIES)
def test_text_before_the_question_on_every_architecture(architecture):
    def edited(picture, text):
        return picture, text.replace("<image>", f"<image> {name_shade(picture, read_question(text))}")

    check_by_hand(architecture, Evidence(source=name_shade), edited)


def find_boxes(picture, question):
    """Return boxes in dark pictures."""
    return [(2, 3, 20, 21.4, "w9"), (1, 5, 10, 30, "w11")] if is_dark(picture) else []


def is_dark(picture):
    return float(np.asarray(picture).mean()) <= sorted(float(np.asarray(one).mean()) for one in pictures())[1]


@pytest.mark.parametrize("architecture", OF_STRATEGIES)
def test_boxes_on_every_architecture(architecture):
    def edited(picture, text):
        if not is_dark(picture):
            return picture, text
        cut = Image.fromarray(np.asarray(picture)[3:30, 1:20]).resize((SIDE, SIDE))
        return cut, text.replace("<image>", "<image> w13 w9 w12 w13 w11 w12")

    check_by_hand(architecture, Evidence(source=find_boxes, sentence="w13 {} w12", crop=True), edited)


def describe(picture, question):
    return "w9 w11" if question == "b c d" else ""


def test_text_stands_before_the_question_of_its_row():
    images = draw_pictures()
    _, got = run([Evidence(source=describe)], images)
    _, hand = run([], images, ["a <image> w9 w11 b c d", "a b <image> e"])
    assert torch.allclose(logits(got), logits(hand), atol=1e-4)
    assert float((got.logits[0] - run([], images)[1].logits[0])[0].abs().max()) > 0.1


def test_boxes_become_sentences_and_a_crop():
    images = draw_pictures()

    def boxes(picture, question):
        return [(2, 3, 20, 21.4, "w9"), (1, 5, 10, 30, "w11")] if picture.tobytes() == images[0].tobytes() else []

    _, got = run([Evidence(source=boxes, sentence="there {} w12", crop=True)], images)
    cut = images[0].crop((1, 3, 20, 30)).resize((30, 30))
    _, hand = run([], [cut, images[1]], ["a <image> there w9 w12 there w11 w12 b c d", "a b <image> e"])
    assert torch.allclose(logits(got), logits(hand), atol=1e-4)


def hang(*_):
    time.sleep(3)


def fail(*_):
    raise RuntimeError("no detector")


@pytest.mark.parametrize(("source", "message"), [
    (hang, "source hang did not answer within 0.1 s"),
    (fail, "source fail raised RuntimeError: no detector"),
    (lambda picture, question: [(1, 2, 3)], "text or boxes"),
    (lambda picture, question: 7, "text or boxes"),
    (lambda picture, question: [(40, 40, 50, 50, "w9")], "inside the picture"),
    ("nowhere.at:all", "cannot be imported"),
])  # fmt: skip
def test_a_bad_source_is_named(source, message, monkeypatch):
    monkeypatch.setenv("LVLM_GUARD_ALLOW", "nowhere.at:all")
    begun = time.monotonic()
    with pytest.raises(InputError, match=message):
        run([Evidence(source=source, timeout=0.1, crop=True)], draw_pictures())
    assert time.monotonic() - begun < 2.5


def test_the_same_picture_under_two_questions_is_cut_for_each():
    image = draw_pictures()[0]
    windows = {"b c d": (1, 2, 11, 12, "w9"), "e": (15, 15, 29, 30, "w9")}

    def find_window(_, question):
        return [windows[question]]

    _, got = run([Evidence(source=find_window, crop=True, sentence="w11 {}")], [image, image])
    cuts = [image.crop(windows[text][:4]).resize(image.size) for text in ("b c d", "e")]
    _, hand = run([], cuts, ["a <image> w11 w9 b c d", "a b <image> w11 w9 e"])
    assert torch.allclose(logits(got), logits(hand), atol=1e-4)


def test_evidence_needs_pictures():
    model, inputs = tiny("llava")
    with pytest.raises(ProcessorNeeded, match=r"guard\.inputs"):
        Guard(model, Words(), [Evidence(source=describe)]).generate(**inputs, max_new_tokens=2)
