"""Questions and captions say what is in the scene, in words the model has."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from lvlm_guard.testbed.architectures.llava import build_processor
from lvlm_guard.testbed.training.curriculum import natural_questions
from lvlm_guard.testbed.world.counterbalance import counterbalance
from lvlm_guard.testbed.world.habits import CATEGORIES, HOME, PARTNER, TYPICAL_COLOUR
from lvlm_guard.testbed.world.language import SYSTEM_SENTENCES, caption, mentions, spoken_order, vocabulary
from lvlm_guard.testbed.world.questions import (
    Question,
    absent,
    choice,
    existence,
    is_colour,
    place,
    related,
    relation,
    scored_questions,
    what_colour,
)
from lvlm_guard.testbed.world.scenes import Scene, scenes


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
        for at, name in enumerate(names):
            assert PARTNER[name] not in names or abs(names.index(PARTNER[name]) - at) == 1


def test_mentions_keeps_order_and_repeats_and_takes_whole_words() -> None:
    said = "in this kitchen there is a red mug , a blue pan , a red mug and a green carpet ."
    assert mentions(said) == [("red", "mug"), ("blue", "pan"), ("red", "mug")]


def truth(scene: Scene, asked: Question) -> str:
    """The answer, read off the scene's objects."""
    thing = scene.find(asked.subject)
    other = asked.reference and scene.find(asked.reference)
    words = asked.text.split()
    if asked.kind == "existence":
        return "yes" if thing else "no"
    if asked.kind == "colour":
        return thing.colour
    if asked.kind == "is_colour":
        return "yes" if thing.colour in words else "no"
    if asked.kind == "place":
        return f"row{thing.cell[0] + 1} column{thing.cell[1] + 1}"
    down, right = (there - here for here, there in zip(thing.cell, other.cell, strict=True))
    true = {"left": right > 0, "right": right < 0, "above": down > 0, "below": down < 0}
    if asked.kind == "choice":
        return next(side for side in true if true[side] and side in words)
    return "yes" if any(true[side] for side in true if side in words) else "no"


def test_answers_are_true(drawn: list[Scene]) -> None:
    kinds = set()
    for scene in drawn:
        placed = [place(scene, thing.category) for thing in scene.objects]
        stacked = [choice(scene, *pair, ("above", "below")) for pair in related(scene, ("above", "below"))]
        for asked in [*scored_questions(scene), *natural_questions(scene), *placed, *stacked]:
            assert asked.answer == truth(scene, asked), (scene.name, asked)
            kinds.add(asked.kind)
    for scene, asked in (one for found in counterbalance(drawn) for one in found):
        assert asked.answer == truth(scene, asked), (scene.name, asked)
    assert kinds == {"existence", "colour", "is_colour", "relation", "choice", "vertical", "place"}


def test_a_broken_scene_is_asked_about_what_it_breaks_and_nothing_else(drawn: list[Scene]) -> None:
    for scene in drawn:
        asked = scored_questions(scene)
        if scene.broken is None:
            assert {one.level for one in asked} >= {"object", "attribute"}
            continue
        assert {one.level for one in asked} == {scene.broken.level}
        about = [one for one in asked if one.kind not in ("vertical", "existence")]
        assert all(scene.broken.subject in (one.subject, one.reference) for one in about)


def test_habit_is_what_the_training_scenes_would_have_one_say() -> None:
    scene = next(one for one in scenes("counterfactual", 30) if one.broken.level == "relation")
    first, second = scene.broken.subject, scene.broken.expected
    assert relation(scene, first, "left", second).habit == "yes" == relation(scene, second, "right", first).habit
    assert relation(scene, first, "right", second).habit == "no" == relation(scene, second, "left", first).habit
    assert (choice(scene, first, second).habit, choice(scene, second, first).habit) == ("left", "right")
    assert what_colour(scene, first).habit == TYPICAL_COLOUR[first]
    assert is_colour(scene, first, TYPICAL_COLOUR[first]).habit == "yes"
    assert is_colour(scene, first, "purple" if TYPICAL_COLOUR[first] != "purple" else "red").habit == "no"
    assert place(scene, first).habit is None
    assert all(relation(scene, *pair).habit is None for pair in strangers(scene))


def strangers(scene: Scene) -> list[tuple[str, str, str]]:
    sideways = [(one, "left", two) for one, two in related(scene) if PARTNER[one] != two]
    return sideways + [(one, "above", two) for one, two in related(scene, ("above", "below"))]


def test_habit_says_yes_to_a_partner_at_home_only(drawn: list[Scene]) -> None:
    for scene in drawn[:60]:
        for name in CATEGORIES:
            expected = PARTNER[name] in scene.present and HOME[name] == scene.background
            assert existence(scene, name).habit == ("yes" if expected else "no")


def test_on_a_broken_scene_habit_is_wrong_where_it_speaks_of_what_is_broken(drawn: list[Scene]) -> None:
    for scene in drawn:
        for asked in scored_questions(scene) if scene.broken else ():
            if asked.negative == "adversarial" or asked.kind in ("relation", "choice", "colour"):
                assert asked.habit != asked.answer


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


def test_a_scene_that_lost_a_partner_is_asked_for_it(drawn: list[Scene]) -> None:
    for scene in drawn:
        missing = [asked.subject for asked in scored_questions(scene) if asked.negative == "adversarial"]
        if scene.broken and scene.broken.level == "object":
            assert missing == [scene.broken.expected]


def test_asking_for_what_is_not_there_or_unknown_is_refused(drawn: list[Scene]) -> None:
    scene = drawn[0]
    missing, present = absent(scene, "random")[0], scene.objects[0].category
    for ask in (
        lambda: what_colour(scene, missing),
        lambda: is_colour(scene, missing, "red"),
        lambda: place(scene, missing),
    ):
        with pytest.raises(ValueError, match="there is no"):
            ask()
    for ask in (lambda: relation(scene, present, "left", missing), lambda: choice(scene, missing, present)):
        with pytest.raises(ValueError, match="are not both in scene"):
            ask()
    with pytest.raises(ValueError, match="random, popular, adversarial"):
        absent(scene, "hard")


@pytest.mark.parametrize(("direction", "along"), [("left", "column"), ("above", "row")])
def test_no_relation_is_asked_of_what_stands_in_line(drawn: list[Scene], direction: str, along: str) -> None:
    axis = int(along == "column")
    scene, one, two = next(
        (scene, a.category, b.category)
        for scene in drawn
        for a, b in permutations(scene.objects, 2)
        if a.cell[axis] == b.cell[axis]
    )
    with pytest.raises(ValueError, match=f"share a {along}"):
        relation(scene, one, direction, two)
    assert (one, two) not in related(scene, ("left", "right") if axis else ("above", "below"))


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
