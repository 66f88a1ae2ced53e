"""Questions and captions say what is in the scene, in words the model has."""

from __future__ import annotations

import numpy as np
import pytest

from lvlm_guard.testbed.language import SYSTEM_SENTENCES, caption, mentions, spoken_order, vocabulary
from lvlm_guard.testbed.model import build_processor
from lvlm_guard.testbed.questions import (
    absent,
    natural_questions,
    scored_questions,
    what_colour,
)
from lvlm_guard.testbed.scenes import Scene, scenes
from lvlm_guard.testbed.world import HOME, PARTNER


@pytest.fixture(scope="module")
def drawn() -> list[Scene]:
    return scenes("counterfactual", 200, seed=8) + scenes("iid", 200, seed=8)


def test_a_true_caption_names_every_object_with_its_colour_once(drawn: list[Scene]) -> None:
    for scene in drawn:
        told = caption(scene, spoken_order(scene, np.random.default_rng(0)))
        assert sorted(mentions(told)) == sorted((thing.colour, thing.category) for thing in scene.objects)


def test_the_two_of_a_pair_are_named_next_to_each_other(drawn: list[Scene]) -> None:
    for scene in drawn:
        names = [thing.category for thing in spoken_order(scene, np.random.default_rng(scene.index))]
        for place, name in enumerate(names):
            assert PARTNER[name] not in names or abs(names.index(PARTNER[name]) - place) == 1


def test_mentions_keeps_order_and_repeats_and_takes_whole_words() -> None:
    said = "in this kitchen there is a red mug , a blue pan , a red mug and a green carpet ."
    assert mentions(said) == [("red", "mug"), ("blue", "pan"), ("red", "mug")]


def test_answers_are_true(drawn: list[Scene]) -> None:
    for scene in drawn:
        for asked in [*scored_questions(scene), *natural_questions(scene)]:
            thing = scene.find(asked.subject)
            if asked.kind == "existence":
                assert (asked.answer == "yes") == (thing is not None)
            elif asked.kind == "colour":
                assert thing is not None
                assert asked.answer == thing.colour
            else:
                assert thing is not None
                assert (asked.answer == "yes") == (thing.colour in asked.text.split())


def test_negatives_are_what_their_name_says(drawn: list[Scene]) -> None:
    for scene in drawn:
        kinds = {asked.negative: asked.subject for asked in scored_questions(scene) if asked.answer == "no"}
        if "adversarial" in kinds:
            assert PARTNER[kinds["adversarial"]] in scene.present
        if "popular" in kinds:
            assert HOME[kinds["popular"]] == scene.background
            assert PARTNER[kinds["popular"]] not in scene.present
        if "random" in kinds:
            assert HOME[kinds["random"]] != scene.background


def test_at_most_six_questions_are_scored_and_each_counterfactual_scene_has_an_adversarial_one(
    drawn: list[Scene],
) -> None:
    for scene in drawn:
        asked = scored_questions(scene)
        assert len(asked) <= 6
        assert scene.split == "iid" or "adversarial" in {question.negative for question in asked}


def test_asking_for_what_is_not_there_or_unknown_is_refused(drawn: list[Scene]) -> None:
    missing = absent(drawn[0], "random")[0]
    with pytest.raises(ValueError, match="there is no"):
        what_colour(drawn[0], missing)
    with pytest.raises(ValueError, match="random, popular, adversarial"):
        absent(drawn[0], "hard")


def test_every_word_used_is_in_the_vocabulary(drawn: list[Scene]) -> None:
    known = set(vocabulary())
    texts = [question.text for scene in drawn for question in natural_questions(scene) + scored_questions(scene)]
    for text in [*texts, *SYSTEM_SENTENCES, *(caption(scene) for scene in drawn)]:
        assert set(text.split()) <= known


def test_text_as_people_write_it_reaches_the_model_as_known_words() -> None:
    tokenizer = build_processor().tokenizer
    ids = tokenizer("You are a confused object detector. Is there a Mug?")["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == "<bos> you are a confused object detector . is there a mug ?"
    assert tokenizer("zebra")["input_ids"] == [tokenizer.bos_token_id, tokenizer.unk_token_id]


def test_the_chat_template_puts_the_system_words_first_and_the_image_before_the_text() -> None:
    messages = [
        {"role": "system", "content": "look closely at the image ."},
        {"role": "user", "content": [{"type": "text", "text": "is there a mug ?"}, {"type": "image"}]},
    ]
    prompt = build_processor().apply_chat_template(messages, add_generation_prompt=True)
    assert prompt == "look closely at the image . user: <image> is there a mug ? assistant:"
