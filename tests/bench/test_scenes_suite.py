"""The drawn scenes as a suite: the testbed's own figures, all of which depend on the picture."""

from pathlib import Path

import pytest
import torch

from lvlm_guard import testbed
from lvlm_guard.bench.items import LEVELS, AnsweredItem
from lvlm_guard.bench.running import runner, store, systems
from lvlm_guard.bench.running.manifest import RunPlan, SuiteChoice
from lvlm_guard.bench.suite import Suite
from lvlm_guard.errors import InputError
from lvlm_guard.testbed.evaluate import evaluate
from lvlm_guard.testbed.measures import CARD_MEASURES, compare
from lvlm_guard.testbed.suite import Scenes
from lvlm_guard.testbed.world.scenes import scenes

COUNT = 45
SEED = 3


def asked(model, processor, folder: Path):
    suite = Scenes(count=COUNT, seed=SEED)
    only_greedy = tuple(one for one in systems.CONTROLS if one != systems.GREEDY)
    plan = RunPlan(
        {"scenes": SuiteChoice(suite, "ours")}, systems.build_systems({}, only_greedy), only_greedy, batch=64
    )
    record = runner.run(plan, model, processor, folder, model_id="testbed", progress=False)
    return record.read_answers(systems.GREEDY, "scenes")


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    return asked(*testbed.load(), tmp_path_factory.mktemp("seeing"))


@pytest.fixture(scope="module")
def blind(tmp_path_factory):
    """The same with the projector zeroed: every picture looks the same to the language model."""
    model, processor = testbed.load()
    with torch.no_grad():
        for weight in model.model.multi_modal_projector.parameters():
            weight.zero_()
    return asked(model, processor, tmp_path_factory.mktemp("blind"))


def values(said):
    return {one.name: one.value(said) for one in Scenes().measures("ours")}


def test_it_is_a_suite_with_items_at_every_level():
    suite = Scenes(count=12)
    assert isinstance(suite, Suite)
    items = suite.load(None).items
    assert {item.level for item in items} == set(LEVELS)
    assert {"existence", "colour", "is_colour", "relation", "choice", "vertical", "caption"} == {i.kind for i in items}
    assert len({item.id for item in items}) == len(items)
    assert {item.extra["broken"] for item in items if item.kind == "caption"} == {"object", "attribute"}
    assert items == Scenes(count=12).load(None).items != Scenes(count=12, seed=1).load(None).items


def test_a_picture_is_the_scene_of_the_item():
    suite = Scenes(count=4, seed=7, split="iid")
    drawn = {one.name: one.picture.tobytes() for one in scenes("iid", 4, 7)}
    assert {i.image: suite.picture(None, i.image).tobytes() for i in suite.load(None).items} == drawn


def test_captions_may_be_limited():
    counts = [
        sum(i.kind == "caption" for i in Scenes(count=9, captions=most).load(None).items) for most in (None, 2, 0)
    ]
    assert counts == [6, 2, 0]


def test_questions_may_be_limited_to_the_first_scenes():
    whole, cut = (Scenes(count=6, asked=asked).load(None).items for asked in (None, 2))
    first = {f"counterfactual-0-{index}" for index in range(2)}
    assert cut == [one for one in whole if one.kind == "caption" or one.image in first]
    assert len(cut) < len(whole)
    assert all(one.kind == "caption" for one in Scenes(count=6, asked=0).load(None).items)


@pytest.mark.parametrize(
    "wrong",
    [{"split": "counter"}, {"count": 0}, {"seed": -1}, {"captions": -1}, {"asked": -1}],
    ids=lambda one: next(iter(one)),
)
def test_scenes_that_cannot_be_drawn_are_refused(wrong):
    with pytest.raises(InputError, match=f"{next(iter(wrong.values()))}"):
        Scenes(**wrong)


def test_a_parser_that_there_is_not_is_refused():
    with pytest.raises(InputError, match="Known: ours"):
        Scenes().measures("official")


def test_figures_are_those_of_the_testbeds_own_evaluation(said):
    """The same scenes through the other door, with other batches."""
    model, processor = testbed.load()
    answers = evaluate(model.generate, processor, scenes("counterfactual", COUNT, SEED), progress=False).answers
    own = {name: one.plain.value for name, one in compare(answers, answers, measures=CARD_MEASURES).items()}
    names = {
        "object": "balanced_object", "attribute": "accuracy_attribute", "relation": "accuracy_relation",
        "caption": "chair_i", "caption_spoilt": "chair_s", "caption_recall": "recall", "caption_colour": "miscoloured",
        "object_random": "balanced_random", "object_popular": "balanced_popular",
        "object_adversarial": "balanced_adversarial", "vertical": "accuracy_vertical",
    }  # fmt: skip
    found = values(said)
    assert {there: found[here] for there, here in names.items()} == pytest.approx({name: own[name] for name in names})


def test_with_the_projector_zeroed_every_figure_moves(said, blind):
    seeing, blinded = values(said), values(blind)
    aims = {one.name: one.higher_is_better for one in Scenes().measures("ours")}
    unmoved = {name for name in seeing if abs(seeing[name] - blinded[name]) < 0.01}
    assert unmoved <= {"unread"}, {name: (seeing[name], blinded[name]) for name in unmoved}
    better = {n for n, aim in aims.items() if aim is not None and (blinded[n] > seeing[n]) == aim and n not in unmoved}
    # colours are read of present things that are named, and blind captions hardly name any
    assert better <= {"miscoloured"}, {name: (seeing[name], blinded[name]) for name in better}
    assert blinded["recall"] < seeing["recall"] / 2
    assert blinded["balanced_object"] < 0.7 < 0.85 < seeing["balanced_object"]


def test_an_answer_without_yes_or_no_counts_as_unread_and_wrong():
    item = next(i for i in Scenes(count=3).load(None).items if i.truth == "yes")
    found = values([AnsweredItem(item, "perhaps")])
    assert (found["unread"], found["accuracy"], found["yes_ratio"]) == (1.0, 0.0, 0.0)
    assert store.digest([item])["ids_sha256"] != store.digest([])["ids_sha256"]


def test_a_caption_is_counted_by_hand():
    # the scene's caption is replaced, so that the truth is known: a mug and an egg, and the egg is white
    items = Scenes(count=3).load(None).items
    item = next(i for i in items if i.kind == "caption" and i.extra["broken"] == "attribute")
    told = item.__class__(
        **{
            **vars(item),
            "truth": "in this kitchen there is a red mug and a white egg .",
            "extra": {**item.extra, "broken": None},
        }
    )
    found = values([AnsweredItem(told, " in this kitchen there is a red mug , a blue egg and a cyan spoon .")])
    assert (found["chair_i"], found["chair_s"], found["recall"]) == (pytest.approx(1 / 3), 1.0, 1.0)
    assert (found["miscoloured"], found["length"]) == (0.5, 17.0)
