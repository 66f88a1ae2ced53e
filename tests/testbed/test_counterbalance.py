"""The questions about scenes cannot be answered without looking, and a prefix of them neither."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from lvlm_guard.bench.items import LEVELS, AnsweredItem, Item
from lvlm_guard.bench.running.batches import limit_items
from lvlm_guard.host.stack import Stack
from lvlm_guard.testbed import load
from lvlm_guard.testbed.card.single_branch import Blind
from lvlm_guard.testbed.running import answer
from lvlm_guard.testbed.scoring import CAPTION
from lvlm_guard.testbed.scoring import keeps_habits as caption_keeps_habits
from lvlm_guard.testbed.suite import DESIGNS, SPLITS, Scenes
from lvlm_guard.testbed.world.counterbalance import find_breaks, keeps_habits
from lvlm_guard.testbed.world.habits import COLOUR_NAMES
from lvlm_guard.testbed.world.scenes import scenes

OPPOSITE = {"yes": "no", "no": "yes", "left": "right", "right": "left"}
HEADLINES = ("habit_balanced", *(f"habit_balanced_{level}" for level in LEVELS))
MEASURED = (*HEADLINES, "habit_true", "habit_breaking", "balanced_relation", "balanced_attribute")


def questions(split: str, count: int, **more) -> list[Item]:
    return [item for item in Scenes(split, count, captions=0, **more).load(None).items if item.extra["habit"]]


@pytest.fixture(scope="module", params=[(split, count) for split in SPLITS for count in (60, 450)], ids=str)
def asked(request) -> list[Item]:
    return questions(*request.param)


def habitual(item: Item) -> bool:
    return item.truth == item.extra["habit"]


def test_as_many_truths_agree_with_habit_as_do_not_in_every_cell(asked: list[Item]) -> None:
    cells = Counter((item.level, item.kind, item.truth, habitual(item)) for item in asked if item.kind != "colour")
    assert {level for level, *_ in cells} == set(LEVELS)
    assert all(cells[level, kind, truth, True] == cells[level, kind, truth, False] for level, kind, truth, _ in cells)
    colours = Counter(habitual(item) for item in asked if item.kind == "colour")
    assert colours[True] == colours[False] > 0


def test_yes_and_no_are_equally_frequent_in_either_half_of_a_level(asked: list[Item]) -> None:
    sides = Counter((item.level, habitual(item), item.truth) for item in asked if item.kind != "colour")
    assert all(sides[level, half, truth] == sides[level, half, OPPOSITE[truth]] > 0 for level, half, truth in sides)


def test_every_question_is_asked_as_often_with_the_other_truth(asked: list[Item]) -> None:
    truths: dict[str, Counter[str]] = defaultdict(Counter)
    for item in asked:
        truths[item.prompt][item.truth if item.kind != "colour" else str(habitual(item))] += 1
    assert all(len(counts) == 2 and len(set(counts.values())) == 1 for counts in truths.values())


def blind_answers(item: Item) -> dict[str, str]:
    """What is said without looking; where "yes" is no answer, habit."""
    habit, open_question = item.extra["habit"], item.kind in ("colour", "choice")
    against = OPPOSITE.get(habit, next(name for name in COLOUR_NAMES if name != habit))
    return {
        "always yes": habit if open_question else "yes",
        "always no": habit if open_question else "no",
        "habit": habit,
        "against habit": against,
    }


def score(items: Sequence[Item], say: Callable[[Item], str], design: str = "balanced") -> dict[str, float]:
    answers = [AnsweredItem(item, say(item)) for item in items]
    measures = {measure.name: measure for measure in Scenes(design=design).measures("ours")}
    return {name: measures[name].value(answers) for name in MEASURED if name in measures}


@pytest.mark.parametrize("way", ["always yes", "always no", "habit", "against habit"])
def test_nobody_wins_without_looking(asked: list[Item], way: str) -> None:
    found = score(asked, lambda item: blind_answers(item)[way])
    closed = score([item for item in asked if item.kind != "colour"], lambda item: blind_answers(item)[way])
    assert [closed[name] for name in HEADLINES] == pytest.approx([0.5] * 4)
    # what colour a thing has if not its usual one cannot be said by its name
    assert all(found[name] <= 0.5 + 1e-9 for name in HEADLINES)
    if way != "against habit":
        assert [found[name] for name in HEADLINES] == pytest.approx([0.5] * 4)


def test_whoever_looks_most_of_the_time_beats_them(asked: list[Item]) -> None:
    rng = np.random.default_rng(0)
    found = score(asked, lambda item: item.truth if rng.random() < 0.8 else blind_answers(item)["habit"])
    assert all(0.8 < found[name] < 0.97 for name in HEADLINES)
    assert found["habit_true"] == 1.0 > found["habit_breaking"]


def test_the_one_sided_design_can_be_won_without_looking() -> None:
    items = questions("counterfactual", 60, design="one_sided")
    found = score(items, lambda item: blind_answers(item)["against habit"], "one_sided")
    assert (found["balanced_relation"], found["balanced_attribute"]) == (1.0, 1.0)


@pytest.mark.parametrize("design", DESIGNS)
def test_the_opposite_of_what_the_model_says_without_the_picture_wins_the_one_sided_design_alone(design: str) -> None:
    suite = Scenes(count=15, captions=0, design=design)
    answers = answer(*load(), {"scenes": suite}, {"blind": Stack.of([Blind()])}, progress=False)["scenes"]["blind"]
    texts = {reply.item.id: reply.text.strip() for reply in answers if reply.item.truth in OPPOSITE}
    items = [item for item in questions("counterfactual", 15, design=design) if item.id in texts]
    name = "habit_balanced_relation" if design == "balanced" else "balanced_relation"
    blind = score(items, lambda item: texts[item.id], design)[name]
    contrarian = score(items, lambda item: OPPOSITE[texts[item.id]], design)[name]
    assert (blind, contrarian) == pytest.approx((0.5, 0.5) if design == "balanced" else (0.0, 1.0))


@pytest.mark.parametrize("limit", [100, 300, 1000])
def test_a_part_of_the_suite_cannot_be_won_either(limit: int) -> None:
    part = [item for item in limit_items(Scenes(count=450, captions=0).load(None).items, limit) if item.extra["habit"]]
    for way in ("always yes", "always no", "habit", "against habit"):
        closed = score([item for item in part if item.kind != "colour"], lambda item: blind_answers(item)[way])  # noqa: B023
        assert [closed[name] for name in HEADLINES] == pytest.approx([0.5] * 4)


def words_accuracy(items: Sequence[Item]) -> float:
    """Share of answers that a table of words, pairs of words and whole questions gets right, fitted on other pictures."""
    folds = [int(item.image.rsplit("-", 1)[1]) % 5 for item in items]
    right = 0
    for fold in range(5):
        counts: dict[object, np.ndarray] = defaultdict(lambda: np.ones(2))
        for item, own in zip(items, folds, strict=True):
            if own != fold:
                for feature in features(item):
                    counts[feature][int(item.truth in ("yes", "left"))] += 1
        for item, own in zip(items, folds, strict=True):
            if own == fold:
                evidence = sum(np.log(counts[feature][1] / counts[feature][0]) for feature in features(item))
                right += (evidence > 0) == (item.truth in ("yes", "left"))
    return right / len(items)


def features(item: Item) -> list[object]:
    words = item.prompt.split()
    return [*words, *zip(words, words[2:], strict=False), item.prompt]


@pytest.mark.parametrize("split", SPLITS)
def test_words_do_not_foretell_answers(split: str) -> None:
    items = questions(split, 300)
    for kind in ("existence", "is_colour", "relation", "choice"):
        assert words_accuracy([item for item in items if item.kind == kind]) < 0.55, kind


def test_words_foretell_answers_of_the_one_sided_design() -> None:
    items = questions("counterfactual", 300, design="one_sided")
    for kind in ("is_colour", "relation", "choice"):
        assert words_accuracy([item for item in items if item.kind == kind]) > 0.7, kind


def test_halves_are_mostly_about_the_same_scenes() -> None:
    items = questions("counterfactual", 450)
    broken, kept = ({(item.level, item.image) for item in items if habitual(item) == half} for half in (False, True))
    assert len(broken & kept) > 0.75 * len(kept)


def test_every_broken_habit_is_asked_about() -> None:
    for split in SPLITS:
        breaks = Counter(broken.level for scene in scenes(split, 40, 5) for broken in find_breaks(scene))
        against = Counter(item.level for item in questions(split, 40, seed=5) if not habitual(item))
        # two questions of a broken pair, three of a colour, four of an order
        assert against == {level: breaks[level] * of for level, of in zip(LEVELS, (2, 3, 4), strict=True)}


def test_more_scenes_add_questions_and_change_none() -> None:
    for split in SPLITS:
        few, many = (questions(split, count) for count in (20, 50))
        assert {item.id: item for item in few}.items() <= {item.id: item for item in many}.items()
        assert questions(split, 50, questions=20) == few
        described, more = (Scenes(split, count, questions=0).load(None).items for count in (20, 50))
        assert described == more[:20]


def test_half_of_the_captioned_scenes_keep_habits() -> None:
    for split in SPLITS:
        suite = Scenes(split, 60, questions=0)
        items = suite.load(None).items
        kept = [caption_keeps_habits(AnsweredItem(item, "")) for item in items]
        assert {item.kind for item in items} == {CAPTION}
        assert sum(kept) * 2 == len(kept) == 60
        assert kept == [keeps_habits(suite.find(item.image)) for item in items]
        assert sum(kept[:8]) == 4
