"""Where answers come from: agreement and inventions counted by hand, and answers of a branch alone."""

from __future__ import annotations

import math

import pytest
import torch

from lvlm_guard import Guard
from lvlm_guard.testbed import load
from lvlm_guard.testbed.card import only, origins
from lvlm_guard.testbed.card.only import Blind, Noised
from lvlm_guard.testbed.evaluate import Answer, Ask, asked_about, evaluate, prompts
from lvlm_guard.testbed.world.habits import CATEGORIES, residents
from lvlm_guard.testbed.world.language import caption
from lvlm_guard.testbed.world.scenes import absent_partners, scenes


def answer(
    prompt: str, truth: str, text: str, habit: str | None, level: str = "object", kind: str = "existence"
) -> Answer:
    return Answer("scene", "counterfactual", level, kind, prompt, truth, text, habit=habit)


def test_agreement_of_hand_made_answers() -> None:
    said = [
        answer("a", "no", "yes", "yes"),  # wrong, by habit
        answer("b", "no", "yes", "no"),  # wrong, against habit
        answer("c", "yes", "yes", "yes"),  # right, by habit
        answer("d", "no", "no", "yes"),  # right, against habit
        answer("e", "no", "no", "no"),  # right, by habit
        answer("f", "right", "left", "left", "relation", "choice"),  # wrong, by habit
        answer("g", "yes", "no", None, "relation", "vertical"),  # no habit: left out
    ]
    branch = [answer(one.prompt, one.truth, "yes", one.habit) for one in said]
    found = origins.agreement(said, {"blind": branch})
    assert found["object"]["wrong"] == {"n": 2.0, "habit": 0.5, "blind": 1.0}
    assert found["object"]["right"] == {"n": 3.0, "habit": pytest.approx(2 / 3), "blind": pytest.approx(1 / 3)}
    assert found["relation"]["wrong"] == {"n": 1.0, "habit": 1.0, "blind": 0.0}
    assert found["relation"]["right"]["n"] == 0
    assert math.isnan(found["attribute"]["wrong"]["habit"])


def test_inventions_of_hand_made_captions() -> None:
    given = [one for one in scenes("counterfactual", 30) if one.broken.level == "object"][:4]
    partner = [absent_partners(one)[0] for one in given]
    stranger = [
        next(c for c in CATEGORIES if c not in residents(one.background) and c not in one.present) for one in given
    ]
    texts = [
        f"there is a red {partner[0]} .",
        f"there is a red {partner[1]} and a blue {stranger[1]} .",
        "",
        caption(given[3]),
    ]
    told = [
        Answer(one.name, one.split, "caption", "caption", "", caption(one), text)
        for one, text in zip(given, texts, strict=True)
    ]
    found = origins.inventions(told, given)
    resident = sum(len(set(residents(one.background)) - one.present) - 1 for one in given)
    strangers = sum(len(set(CATEGORIES) - set(residents(one.background)) - one.present) for one in given)
    assert found["partner"] == pytest.approx(2 / 4)
    assert found["stranger"] == pytest.approx(1 / strangers)
    assert found["resident"] == 0
    assert resident >= 0


@pytest.fixture(scope="module")
def bundled():
    return load()


@pytest.fixture(scope="module")
def asks() -> list[Ask]:
    return asked_about(scenes("counterfactual", 6, seed=12))


SETTINGS = {"max_new_tokens": 2, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}


def same(one, other, prompt: int, other_prompt: int) -> bool:
    """Whether two outputs say the same for the same reasons."""
    words = torch.equal(one.sequences[:, prompt:], other.sequences[:, other_prompt:])
    return words and all(torch.allclose(a, b, atol=1e-3) for a, b in zip(one.logits, other.logits, strict=True))


def test_blind_answers_as_the_model_does_without_an_image(bundled, asks: list[Ask]) -> None:
    model, processor = bundled
    inputs = prompts(asks, processor)
    texts = [
        processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "text", "text": ask.prompt}]}], add_generation_prompt=True
        )
        for ask in asks
    ]
    alone = processor(text=texts, padding=True, return_tensors="pt")
    without = model.generate(**alone, **SETTINGS)
    blind = Guard(model, processor, [Blind()]).generate(**inputs, **SETTINGS)
    assert same(blind, without, inputs["input_ids"].shape[1], alone["input_ids"].shape[1])
    plain = model.generate(**inputs, **SETTINGS)
    assert not torch.allclose(plain.logits[0], blind.logits[0], atol=0.1), "no power: the image says nothing"


@pytest.mark.parametrize("kept", [0.135, 0.75])
def test_noised_answers_as_the_model_does_of_the_same_noised_pixels(bundled, asks, kept: float, monkeypatch) -> None:
    model, processor = bundled
    noised, make = [], only._noise

    def recording(share: float):
        edit = make(share)

        def record(pixels, generator):
            noised.append(edit(pixels, generator))
            return noised[-1]

        return record

    monkeypatch.setattr(only, "_noise", recording)
    inputs = prompts(asks, processor)
    guarded = Guard(model, processor, [Noised(kept)]).generate(**inputs, **SETTINGS)
    assert noised
    pixels = torch.stack(noised)
    width = inputs["input_ids"].shape[1]
    seen = model.generate(**{**inputs, "pixel_values": pixels}, **SETTINGS)
    assert same(guarded, seen, width, width)
    spread = (pixels - inputs["pixel_values"] * kept**0.5).std().item()
    assert spread == pytest.approx((1 - kept) ** 0.5, rel=0.02)


def test_margins_are_the_logits_of_yes_and_no(bundled) -> None:
    model, processor = bundled
    given = scenes("counterfactual", 3, seed=12)
    found = origins.margins(model.generate, processor, given)
    asks = [ask for ask in asked_about(given) if ask.kind == "existence"]
    assert set(found) == {(ask.scene.name, ask.prompt) for ask in asks}
    ask = asks[0]
    logits = model(**prompts([ask], processor)).logits[0, -1]
    yes, no = (processor.tokenizer.convert_tokens_to_ids(word) for word in ("yes", "no"))
    assert found[ask.scene.name, ask.prompt] == pytest.approx((logits[yes] - logits[no]).item(), abs=1e-3)


def test_everything_is_measured_in_shares(bundled) -> None:
    model, processor = bundled
    given = scenes("counterfactual", 9, seed=12)
    said = evaluate(model.generate, processor, given, progress=False).answers
    found = origins.measure(model, processor, given, said)
    assert set(found) == {"agreement", "foretold", "inventions"}
    assert set(found["foretold"]) == {"truth", "image-free", "noised a little", "noised"}
    assert all(0 <= rate <= 1 for rate in found["inventions"].values())
    assert set(found["agreement"]) == {"object", "attribute", "relation"}
