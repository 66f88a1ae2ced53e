"""The drawn scenes as a suite: the testbed's own figures, all of which depend on the picture."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from lvlm_guard import testbed
from lvlm_guard.bench.items import LEVELS, AnsweredItem
from lvlm_guard.bench.reporting import comparing, results, verdicts
from lvlm_guard.bench.running import choosing, manifest, runner, store, systems
from lvlm_guard.bench.running.manifest import RunPlan, SuiteChoice
from lvlm_guard.bench.suite import Suite
from lvlm_guard.errors import InputError
from lvlm_guard.testbed.suite import Scenes
from lvlm_guard.testbed.world.scenes import scenes

COUNT = 24
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
    assert {item.extra["broken"] for item in items if item.kind == "caption"} == set(LEVELS)
    assert items == Scenes(count=12).load(None).items != Scenes(count=12, seed=1).load(None).items


def test_a_picture_is_the_scene_of_the_item():
    suite = Scenes(count=4, seed=7, split="iid")
    drawn = {one.name: one.picture.tobytes() for one in scenes("iid", 40, 7)}
    shown = {i.image: suite.picture(None, i.image).tobytes() for i in suite.load(None).items}
    assert len(shown) > 3
    assert shown.items() <= drawn.items()


def test_captions_may_be_limited():
    counts = [
        sum(i.kind == "caption" for i in Scenes(count=15, captions=most).load(None).items) for most in (None, 4, 3, 0)
    ]
    assert counts == [16, 4, 2, 0]


def test_questions_may_be_limited_to_the_first_scenes():
    whole, cut = (Scenes(count=20, questions=most).load(None).items for most in (None, 2))
    few = Scenes(count=2).load(None).items
    assert {one.id for one in cut} == {one.id for one in [*few, *(one for one in whole if one.kind == "caption")]}
    assert len(cut) < len(whole)
    assert all(one.kind == "caption" for one in Scenes(count=20, questions=0).load(None).items)


def test_scenes_about_which_nothing_can_be_asked_are_refused():
    with pytest.raises(InputError, match=r"1 scenes of iid with seed 0\. Draw more: count=10"):
        Scenes("iid", 1, captions=0).load(None)


def test_the_old_name_of_questions_is_accepted_with_a_warning():
    with pytest.warns(DeprecationWarning, match="questions"):
        assert Scenes(count=6, asked=2) == Scenes(count=6, questions=2)
    with pytest.warns(DeprecationWarning, match="questions"):
        chosen = choosing.choose_suites(["scenes:count=6,asked=2"])["scenes"]
    assert chosen.suite == Scenes(count=6, questions=2)
    assert chosen.arguments == {"count": 6, "asked": 2}, "a run begun with the old name could not be resumed"


@pytest.mark.parametrize(
    "wrong",
    [{"split": "counter"}, {"design": "twosided"}, {"count": 0}, {"seed": -1}, {"captions": -1}, {"questions": -1}],
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
    # habit is right where habit is right, and what is invented may be what habit expects or not
    still = ("unread", "habit_true", "miscoloured", "chair_expected")
    assert all(name.startswith(still) for name in unmoved), {n: (seeing[n], blinded[n]) for n in unmoved}
    better = {n for n, aim in aims.items() if aim is not None and (blinded[n] > seeing[n]) == aim and n not in unmoved}
    # colours are read of present things that are named, and blind captions hardly name any
    assert all(name.startswith(still) for name in better), {n: (seeing[n], blinded[n]) for n in better}
    assert all(blinded[f"habit_balanced_{level}"] < seeing[f"habit_balanced_{level}"] - 0.2 for level in LEVELS)
    assert blinded["recall"] < seeing["recall"] / 2
    assert blinded["balanced_object"] < 0.7 < 0.85 < seeing["balanced_object"]


def test_an_answer_without_yes_or_no_counts_as_unread_and_wrong():
    item = next(i for i in Scenes(count=3).load(None).items if i.truth == "yes")
    found = values([AnsweredItem(item, "perhaps")])
    assert (found["unread"], found["accuracy"], found["yes_ratio"]) == (1.0, 0.0, 0.0)
    assert store.digest([item])["ids_sha256"] != store.digest([])["ids_sha256"]


def test_a_caption_is_counted_by_hand():
    # the scene's caption is replaced, so that the truth is known: a mug and an egg, and the egg is white
    item = next(i for i in Scenes(count=20).load(None).items if i.kind == "caption")
    told = dataclasses.replace(item, truth="in this kitchen there is a red mug and a white egg .")
    found = values([AnsweredItem(told, " in this kitchen there is a red mug , a blue egg and a cyan spoon .")])
    assert (found["chair_i"], found["chair_s"], found["recall"]) == (pytest.approx(1 / 3), 1.0, 1.0)
    assert (found["miscoloured"], found["length"]) == (0.5, 17.0)
    assert (found["chair_expected"], found["chair_unexpected"]) == (pytest.approx(1 / 3), 0.0), "mugs have spoons"


def test_inventions_and_recall_are_counted_by_habit():
    item = next(i for i in Scenes(count=20).load(None).items if i.kind == "caption")
    lone = dataclasses.replace(
        item, truth="in this kitchen there is a red mug , a blue pan , a white egg and a cyan car ."
    )
    whole = dataclasses.replace(item, id="whole", truth="in this kitchen there is a blue pan and a white egg .")
    found = values(
        [
            AnsweredItem(lone, " in this kitchen there is a red pan , a cyan car , a cyan spoon and a orange cone ."),
            AnsweredItem(whole, " in this kitchen there is a blue pan , a white egg and a orange table ."),
        ]
    )
    # a spoon goes with the mug; a cone goes with the car, but not in a kitchen; a table is at home, its clock is not there
    assert (found["chair_expected"], found["chair_unexpected"]) == (pytest.approx(1 / 7), pytest.approx(2 / 7))
    assert (found["recall_habit_true"], found["recall_habit_breaking"]) == (0.75, 0.5)
    assert found["habit_balanced_recall"] == 0.625
    assert (found["chair_i_keeping"], found["chair_i_breaking"]) == (pytest.approx(1 / 3), 0.5)
    assert (found["recall_keeping"], found["recall_breaking"]) == (1.0, 0.5)
    assert found["miscoloured_habit_true"] == 0.25
    assert math.isnan(found["miscoloured_habit_breaking"]), "every colour is the typical one"


@pytest.mark.parametrize(
    ("arguments", "digest"),
    [
        ({"split": "counterfactual", "count": 450}, "2d903a569320a362794f9cc500913fa77c36d26d4fec66da3d7f9973cd1ebd8c"),
        (
            {"split": "iid", "count": 300, "questions": 108},
            "654b1cb36f479dc4ec8e987965a80dbb8e2b581d41317f433c0b13fe1888523b",
        ),
    ],
    ids=["counterfactual", "iid"],
)
def test_the_one_sided_design_has_the_items_that_it_had_before_there_was_another(arguments, digest):
    items = Scenes(**arguments, seed=41, captions=300, design="one_sided").load(None).items
    assert store.digest(items)["items_sha256"] == digest, "old runs could not be compared any more"


def greedy_run(folder, **arguments):
    suite = SuiteChoice(Scenes(**arguments), "ours", {name: arguments[name] for name in arguments if name != "design"})
    only_greedy = tuple(one for one in systems.CONTROLS if one != systems.GREEDY)
    plan = RunPlan({"scenes": suite}, systems.build_systems({}, only_greedy), only_greedy)
    return lambda: runner.run(plan, *testbed.load(), folder, model_id="testbed", progress=False)


@pytest.fixture
def old(tmp_path, monkeypatch):
    """A run of before there were designs: its manifest names none."""
    with monkeypatch.context() as before:
        before.setattr(manifest, "UNRECORDED", {})
        greedy_run(tmp_path / "old", count=3, captions=0, design="one_sided")()
    assert "design" not in (tmp_path / "old" / "manifest.json").read_text()
    return tmp_path / "old"


def test_an_old_run_is_scored_by_its_own_measures_which_say_so(old):
    record = store.read(old)
    assert record.manifest["suites"]["scenes"]["arguments"] == {"count": 3, "captions": 0, "design": "one_sided"}
    scored = results.score(record, resamples=100)
    assert verdicts.headline(scored, "scenes") == "balanced_object"
    assert all("one-sided: not for claims" in one.title for one in scored.scores)
    assert {one.measure for one in scored.scores}.isdisjoint({"habit_balanced", "habit_true_object"})


def test_an_old_run_is_not_taken_up_or_compared_as_a_new_one(old, tmp_path):
    with pytest.raises(InputError, match=r"arguments\.design: one_sided there, balanced here"):
        greedy_run(old, count=3, captions=0)()
    new = greedy_run(tmp_path / "new", count=3, captions=0)()
    assert new.manifest["suites"]["scenes"]["arguments"]["design"] == "balanced"
    with pytest.raises(InputError, match="other items"):
        comparing.compare(store.read(old), new)
    again = greedy_run(tmp_path / "again", count=3, captions=0, design="one_sided")()
    assert {pair.measure for pair in comparing.compare(store.read(old), again).pairs} >= {"balanced_object"}
