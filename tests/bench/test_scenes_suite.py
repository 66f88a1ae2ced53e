"""The drawn scenes as a suite: the testbed's own figures, all of which depend on the picture."""

from pathlib import Path

import pytest
import torch

from lvlm_guard import testbed
from lvlm_guard.bench.items import LEVELS, AnsweredItem
from lvlm_guard.bench.running import choosing, runner, store, systems
from lvlm_guard.bench.running.manifest import RunPlan, SuiteChoice
from lvlm_guard.bench.suite import Suite
from lvlm_guard.errors import InputError
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
    whole, cut = (Scenes(count=6, questions=most).load(None).items for most in (None, 2))
    first = {f"counterfactual-0-{index}" for index in range(2)}
    assert cut == [one for one in whole if one.kind == "caption" or one.image in first]
    assert len(cut) < len(whole)
    assert all(one.kind == "caption" for one in Scenes(count=6, questions=0).load(None).items)


def test_the_old_name_of_questions_is_accepted_with_a_warning():
    with pytest.warns(DeprecationWarning, match="questions"):
        assert Scenes(count=6, asked=2) == Scenes(count=6, questions=2)
    with pytest.warns(DeprecationWarning, match="questions"):
        chosen = choosing.choose_suites(["scenes:count=6,asked=2"])["scenes"]
    assert chosen.suite == Scenes(count=6, questions=2)
    assert chosen.arguments == {"count": 6, "asked": 2}, "a run begun with the old name could not be resumed"


@pytest.mark.parametrize(
    "wrong",
    [{"split": "counter"}, {"count": 0}, {"seed": -1}, {"captions": -1}, {"questions": -1}],
    ids=lambda one: next(iter(one)),
)
def test_scenes_that_cannot_be_drawn_are_refused(wrong):
    with pytest.raises(InputError, match=f"{next(iter(wrong.values()))}"):
        Scenes(**wrong)


def test_a_parser_that_there_is_not_is_refused():
    with pytest.raises(InputError, match="Known: ours"):
        Scenes().measures("official")


def test_figures_are_those_of_plain_generate(said):
    """The same scenes without the runner: the processor's own batches through `model.generate`, in another order."""
    model, processor = testbed.load()
    items = sorted(Scenes(count=COUNT, seed=SEED).load(None).items, key=lambda item: len(item.prompt.split()))
    spoken = [
        one for start in range(0, len(items), 32) for one in generate(model, processor, items[start : start + 32])
    ]
    assert values(said) == pytest.approx(values(spoken))
    texts = {one.item.id: one.text.strip() for one in said}
    assert texts == {one.item.id: one.text.strip() for one in spoken}


def generate(model, processor, items):
    messages = [
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": item.prompt}]}] for item in items
    ]
    texts = [processor.apply_chat_template(message, add_generation_prompt=True) for message in messages]
    pictures = [Scenes(seed=SEED).picture(None, item.image) for item in items]
    inputs = processor(text=texts, images=pictures, padding=True, return_tensors="pt")
    length = max(item.max_new_tokens for item in items)
    output = model.generate(**inputs, max_new_tokens=length, do_sample=False)
    new = output[:, inputs["input_ids"].shape[1] :]
    spoken = [
        processor.tokenizer.decode(row[: item.max_new_tokens], skip_special_tokens=True)
        for item, row in zip(items, new, strict=True)
    ]
    return [AnsweredItem(item, text) for item, text in zip(items, spoken, strict=True)]


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
