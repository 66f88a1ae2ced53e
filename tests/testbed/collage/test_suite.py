"""The collages as a suite: complete, balanced, reproducible, and clear about what it lacks."""

from __future__ import annotations

from pathlib import Path

import pytest

from lvlm_guard import testbed
from lvlm_guard.bench.catalogue import find_suite
from lvlm_guard.bench.items import LEVELS, AnsweredItem
from lvlm_guard.bench.running import runner, systems
from lvlm_guard.bench.running.manifest import RunPlan, SuiteChoice
from lvlm_guard.bench.suite import Suite
from lvlm_guard.errors import InputError
from lvlm_guard.testbed.collage.folders import VARIABLE
from lvlm_guard.testbed.collage.measures import collage_measures
from lvlm_guard.testbed.collage.suite import Collage
from lvlm_guard.testbed.collage.world.habits import habits
from lvlm_guard.testbed.collage.world.mentions import Mention, read_mentions
from lvlm_guard.testbed.collage.world.reading import build_reading
from lvlm_guard.testbed.collage.world.things import THING
from lvlm_guard.testbed.scoring import CAPTION, count_miscoloured, is_right


@pytest.mark.usefixtures("at_home")
def test_it_is_a_suite_with_items_at_every_level() -> None:
    suite = find_suite("collage")(count=20)
    assert isinstance(suite, Suite)
    items = suite.load(None).items
    assert {item.level for item in items} == set(LEVELS)
    assert len({item.id for item in items}) == len(items)
    assert items == Collage(count=20).load(None).items != Collage(count=20, seed=1).load(None).items
    assert items == Collage(count=30).load(None).items[: len(items)]
    captioned = [item for item in items if item.kind == CAPTION]
    assert len(captioned) == 40
    assert sum(item.extra["broken"] is None for item in captioned) == 20


@pytest.mark.usefixtures("at_home")
def test_captions_and_questions_may_be_limited() -> None:
    def count(**more) -> tuple[int, int]:
        items = Collage(count=6, **more).load(None).items
        captions = sum(item.kind == CAPTION for item in items)
        return captions, len(items) - captions

    assert count()[0] == 12
    assert count(captions=5)[0] == 4
    assert count(captions=0)[0] == 0
    assert count(questions=0) == (12, 0)
    assert 0 < count(questions=2)[1] < count()[1]


@pytest.mark.usefixtures("at_home")
def test_a_picture_is_the_scene_of_the_item() -> None:
    suite = Collage(count=2)
    pictures = {item.image: suite.picture(None, item.image).tobytes() for item in suite.load(None).items}
    assert len(set(pictures.values())) == len(pictures) == 4
    assert pictures == {image: Collage(count=2).picture(None, image).tobytes() for image in pictures}


def test_absent_pictures_are_an_error_that_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with pytest.raises(InputError, match="lvlm-guard testbed build --world collage"):
        Collage().load(None)


@pytest.mark.parametrize(
    "wrong",
    [{"split": "train"}, {"count": 0}, {"seed": -1}, {"captions": -1}, {"questions": -1}],
    ids=lambda one: next(iter(one)),
)
def test_collages_that_cannot_be_drawn_are_refused(wrong: dict) -> None:
    with pytest.raises(InputError, match=f"{next(iter(wrong.values()))}"):
        Collage(**wrong)
    with pytest.raises(InputError, match="Known: ours"):
        Collage().measures("official")


def captions(count: int = 30) -> list:
    return [item for number in range(count) for item in Collage()._caption_items(number)]


def values(answers: list[AnsweredItem], measures=None) -> dict:
    return {one.name: one.value(answers) for one in measures or Collage().measures("ours")}


def test_true_captions_invent_nothing_and_leave_nothing_out() -> None:
    scored = values([AnsweredItem(item, item.truth) for item in captions()])
    assert scored["chair_i"] == scored["chair_s"] == scored["miscoloured"] == 0
    assert scored["recall"] == scored["recall_keeping"] == scored["recall_breaking"] == 1


def test_inventing_the_expected_partner_is_counted_as_that_where_it_is_absent() -> None:
    def lie(item) -> str:
        present = {mention.name for mention in read_mentions(item.truth)}
        absent = sorted(habits().partner[name] for name in present if habits().partner[name] not in present)
        return f"{item.truth} There is also a {absent[0]}." if absent else item.truth

    items = captions()
    answers = [AnsweredItem(item, lie(item)) for item in items]
    scored = values(answers)
    assert 0 < scored["chair_i"] == scored["chair_expected"]
    assert scored["chair_unexpected"] == 0
    suite = Collage()
    for answer in answers:
        spans = suite.invented(answer.item, answer.text)
        assert [answer.text[slice(*span)] for span in spans] == (
            [answer.text.rsplit("also a ", 1)[1].rstrip(".")] if answer.text != answer.item.truth else []
        )


def test_wrong_colours_are_counted_and_unknown_ones_are_not() -> None:
    swap = {"red": "blue", "blue": "red"}
    items = [item for item in captions(60) if " red " in item.truth or " blue " in item.truth]
    spoken = [" ".join(swap.get(word, word) for word in item.truth.split()) for item in items]
    scored = values([AnsweredItem(item, text) for item, text in zip(items, spoken, strict=True)])
    assert scored["miscoloured"] > 0.3
    assert scored["chair_i"] == 0


def test_the_colour_of_what_has_its_own_colours_is_not_counted() -> None:
    found = ((item, mention) for item in captions() for mention in read_mentions(item.truth))
    item, natural = next((item, mention) for item, mention in found if mention.colour is None)
    world = build_reading()
    assert count_miscoloured(AnsweredItem(item, f"A red {natural.name}."), world) == (0, 0)
    item, tinted = next((i, m) for i in captions() for m in read_mentions(i.truth) if m.colour == "green")
    assert count_miscoloured(AnsweredItem(item, f"A red {tinted.name}."), world) == (1, 1)
    assert count_miscoloured(AnsweredItem(item, f"A {tinted.name}."), world) == (0, 0)


def test_wrong_numbers_and_sizes_are_counted() -> None:
    found = ((item, read_mentions(item.truth)) for item in captions(60))
    item, mentions = next((item, read) for item, read in found if any(m.number == 2 for m in read))
    name = next(mention.name for mention in mentions if mention.number == 2)
    plural = THING[name].plurals

    def mistakes(text: str) -> tuple[float, float]:
        scored = values([AnsweredItem(item, text)])
        return scored["miscounted"], scored["missized"]

    assert mistakes(f"Three {plural}.")[0] == 1
    assert mistakes(f"Two {plural}.")[0] == 0
    assert mistakes(item.truth) == (0, 0)
    flipped = item.truth.replace("big", "SMALL").replace("small", "big")
    assert mistakes(flipped) == (0, 1)


@pytest.mark.parametrize(("text", "right"), [("Two.", True), ("2", True), ("There are 2 of them", True), ("3", False)])
def test_numbers_are_read_as_words_and_as_figures(text: str, right: bool) -> None:
    item = next(
        item
        for number in range(60)
        for item in Collage()._question_items(number)
        if item.kind == "number" and item.truth == "two"
    )
    assert is_right(AnsweredItem(item, text), build_reading()) == right


def test_the_reader_of_captions_can_be_replaced() -> None:
    def reader(text: str) -> list[Mention]:
        return [Mention("dog", (0, 0), 1, None, None)] if "dog" in text else []

    (item, *_) = [item for item in captions(200) if "dog" in item.truth]
    scored = values([AnsweredItem(item, "a cat")], collage_measures(reader))
    assert scored["recall"] == 0
    assert values([AnsweredItem(item, "a dog, cats, buses")], collage_measures(reader))["chair_i"] == 0


def test_remarks_name_what_is_missing() -> None:
    suite = Collage()
    for item in captions(20):
        remark, broken = suite.remark(item), item.extra["broken"]
        assert bool(remark) == (broken is not None)
        if remark:
            lone, partner = remark.split(" without its ")
            assert habits().partner[lone] == partner
            assert lone in item.truth


def test_twins_are_resampled_together() -> None:
    for item in Collage()._question_items(3):
        assert item.cluster == "shift-0-twins-3"


@pytest.mark.usefixtures("at_home")
def test_a_model_that_cannot_take_the_pictures_is_refused_before_any_answer(tmp_path: Path) -> None:
    model, processor = testbed.load()
    processor.image_processor.do_resize = False
    plan = RunPlan({"collage": SuiteChoice(Collage(count=2, captions=0), "ours")}, systems.build_systems({}), batch=8)
    with pytest.raises(InputError, match=r"collage: the model cannot take.*224\*224.*Name another model"):
        runner.run(plan, model, processor, tmp_path, model_id="testbed", progress=False)
