"""Where answers come from: agreement and inventions counted by hand, and answers of a branch alone."""

from __future__ import annotations

import math

import pytest
import torch

from lvlm_guard import Guard
from lvlm_guard.bench.items import AnsweredItem, Item
from lvlm_guard.testbed import load
from lvlm_guard.testbed.card import error_sources, single_branch
from lvlm_guard.testbed.card.single_branch import Blind, Noised
from lvlm_guard.testbed.running import answer as answer_suites
from lvlm_guard.testbed.suite import Scenes
from lvlm_guard.testbed.world.habits import CATEGORIES, residents
from lvlm_guard.testbed.world.language import caption
from lvlm_guard.testbed.world.scenes import absent_partners


def answer(
    name: str, truth: str, text: str, habit: str | None, level: str = "object", kind: str = "existence", **extra: str
) -> AnsweredItem:
    values = {"negative": None, "broken": None, **extra, "habit": habit}
    return AnsweredItem(Item(name, "scene", f"{name} ?", truth, level, kind, extra=values), text)


def test_agreement_of_hand_made_answers() -> None:
    spoken = [
        answer("a", "no", "yes", "yes"),  # wrong, by habit
        answer("b", "no", "yes", "no"),  # wrong, against habit
        answer("c", "yes", " yes", "yes"),  # right, by habit
        answer("d", "no", "no", "yes"),  # right, against habit
        answer("e", "no", "no", "no"),  # right, by habit
        answer("f", "right", "left", "left", "relation", "choice"),  # wrong, by habit
        answer("g", "yes", "no", None, "relation", "vertical"),  # no habit: left out
    ]
    branch = [AnsweredItem(said.item, "yes") for said in spoken]
    found = error_sources.agreement(spoken, {"blind": branch})
    assert found["object"]["wrong"] == {"n": 2.0, "habit": 0.5, "blind": 1.0}
    assert found["object"]["right"] == {"n": 3.0, "habit": pytest.approx(2 / 3), "blind": pytest.approx(1 / 3)}
    assert found["relation"]["wrong"] == {"n": 1.0, "habit": 1.0, "blind": 0.0}
    assert found["relation"]["right"]["n"] == 0
    assert math.isnan(found["attribute"]["wrong"]["habit"])


def test_inventions_of_hand_made_captions() -> None:
    suite = Scenes()
    drawn = [suite.draw(3 * index) for index in range(4)]
    assert {scene.broken.level for scene in drawn} == {"object"}
    partner = [absent_partners(scene)[0] for scene in drawn]
    stranger = [
        next(c for c in CATEGORIES if c not in residents(scene.background) and c not in scene.present)
        for scene in drawn
    ]
    texts = [
        f"there is a red {partner[0]} .",
        f"there is a red {partner[1]} and a blue {stranger[1]} .",
        "",
        caption(drawn[3]),
    ]
    spoken = [
        AnsweredItem(Item(scene.name, scene.name, "", caption(scene), "object", "caption"), text)
        for scene, text in zip(drawn, texts, strict=True)
    ]
    found = error_sources.inventions(spoken, suite)
    strangers = sum(len(set(CATEGORIES) - set(residents(scene.background)) - scene.present) for scene in drawn)
    assert found["partner"] == pytest.approx(2 / 4)
    assert found["stranger"] == pytest.approx(1 / strangers)
    assert found["resident"] == 0


def existence(
    name: str, truth: str, margin: float, negative: str | None = None, broken: str = "object"
) -> AnsweredItem:
    item = answer(name, truth, "yes", None, negative=negative, broken=broken).item
    return AnsweredItem(item, "yes" if margin > 0 else "no", 2, margin)


def test_foretold_of_hand_made_margins() -> None:
    def margins(a: float, b: float, c: float, d: float) -> list[AnsweredItem]:
        return [
            existence("a", "yes", a),
            existence("b", "no", b, "adversarial"),
            existence("c", "no", c, "adversarial"),
            existence("d", "no", d, "random", broken="attribute"),
        ]

    found = error_sources.predict_hallucinations(
        {
            "greedy": margins(2.0, 3.0, -1.0, -2.0),  # b is hallucinated
            "image-free": margins(0.0, 5.0, 1.0, 1.0),
            "noised a little": margins(0.0, 1.0, 5.0, 5.0),
            "noised": margins(0.0, 1.0, 1.0, 0.0),
        }
    )
    assert found == {"truth": 0.5, "image-free": 1.0, "noised a little": 0.0, "noised": 0.75}


@pytest.fixture(scope="module")
def bundled():
    return load()


SUITE = Scenes(count=6, seed=12, captions=0)


@pytest.fixture(scope="module")
def asks() -> list[Item]:
    return list(SUITE.load(None).items)


def prompts(items: list[Item], processor):
    texts = [
        processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": item.prompt}]}],
            add_generation_prompt=True,
        )
        for item in items
    ]
    pictures = [SUITE.picture(None, item.image) for item in items]
    return processor(text=texts, images=pictures, padding=True, return_tensors="pt")


SETTINGS = {"max_new_tokens": 2, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}


def same(one, other, prompt: int, other_prompt: int) -> bool:
    """Whether two outputs say the same for the same reasons."""
    words = torch.equal(one.sequences[:, prompt:], other.sequences[:, other_prompt:])
    return words and all(torch.allclose(a, b, atol=1e-3) for a, b in zip(one.logits, other.logits, strict=True))


def test_blind_answers_as_the_model_does_without_an_image(bundled, asks: list[Item]) -> None:
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
    noised, make = [], single_branch._noise

    def recording(share: float):
        edit = make(share)

        def record(pixels, generator):
            noised.append(edit(pixels, generator))
            return noised[-1]

        return record

    monkeypatch.setattr(single_branch, "_noise", recording)
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
    answers = error_sources.answer_branches(model, processor, Scenes(count=3, seed=12))
    assert set(answers) == {"greedy", "image-free", "noised a little", "noised"}
    found = error_sources.margins(answers["greedy"])
    items = [item for item in SUITE.load(None).items if item.id in found]
    assert {item.id for item in items} == set(found)
    assert {item.kind for item in items} == {"existence"}
    logits = model(**prompts(items[:1], processor)).logits[0, -1]
    yes, no = (processor.tokenizer.convert_tokens_to_ids(word) for word in ("yes", "no"))
    assert found[items[0].id] == pytest.approx((logits[yes] - logits[no]).item(), abs=1e-3)
    assert found[items[0].id] != pytest.approx(error_sources.margins(answers["image-free"])[items[0].id], abs=0.1)


@pytest.mark.slow
def test_everything_is_measured_in_shares(bundled) -> None:
    model, processor = bundled
    suite = Scenes(count=9, seed=12)
    answers = answer_suites(model, processor, {"scenes": suite}, progress=False)["scenes"]["greedy"]
    found = error_sources.measure(model, processor, suite, answers)
    assert set(found) == {"agreement", "foretold", "inventions"}
    assert set(found["foretold"]) == {"truth", "image-free", "noised a little", "noised"}
    assert all(0 <= rate <= 1 for rate in found["inventions"].values())
    assert set(found["agreement"]) == {"object", "attribute", "relation"}
