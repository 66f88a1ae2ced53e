"""The curriculum: its order, what its rows hold, and that they fit."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from lvlm_guard.testbed.architectures.llava import SPAN
from lvlm_guard.testbed.training.curriculum import (
    ALL_KINDS,
    BLIND_SHARE,
    LESSONS,
    NAMES,
    PLACES,
    WEIGHTS,
    build_questions,
    layout,
    lesson_at,
    lesson_rows,
    lesson_scenes,
    natural_questions,
)
from lvlm_guard.testbed.training.packing import IGNORED, pack
from lvlm_guard.testbed.world.scenes import scenes

KINDS = {"existence", "colour", "is_colour", "place", "relation", "vertical", "choice"}


@pytest.mark.parametrize(
    ("progress", "number", "flat"),
    [
        (0.0, 0, 0.5), (0.1999, 0, 0.5), (0.2, 1, 0.9), (0.4999, 1, 0.9), (0.5, 2, 0.9), (0.55, 2, 0.45),
        (0.5999, 2, 0.0), (0.6, 3, 0.0), (0.9999, 3, 0.0), (1.0, 3, 0.0), (1.5, 3, 0.0),
    ],
)  # fmt: skip
def test_curriculum_follow_each_other_at_their_bounds(progress: float, number: int, flat: float) -> None:
    lesson, share = lesson_at(progress)
    assert lesson is LESSONS[number]
    assert share == pytest.approx(flat, abs=1e-3)


def test_the_lessons_end_with_the_training() -> None:
    ends = [lesson.until for lesson in LESSONS]
    assert ends == sorted(ends)
    assert ends[-1] == 1.0


@pytest.mark.parametrize("mix", [NAMES, PLACES, ALL_KINDS], ids=["names", "places", "everything"])
@pytest.mark.parametrize("split", ["flat", "train"])
def test_every_mix_fills_the_layout_exactly(mix, split: str) -> None:
    for scene in scenes(split, 60, seed=2):
        asked = build_questions(scene, mix, np.random.default_rng(scene.index))
        assert len(asked) == layout(SPAN).questions
        counts = Counter(one.kind for one in asked)
        assert (counts["colour"], counts["is_colour"], counts["place"]) == (mix.colour, mix.is_colour, mix.place)
        assert counts["choice"] <= mix.choice
        assert counts["relation"] + counts["vertical"] <= mix.relation
        assert counts["existence"] >= mix.existence


def test_the_share_of_flat_scenes_is_the_lessons() -> None:
    for progress, expected in ((0.1, 0.5), (0.3, 0.9), (0.575, 0.225), (0.8, 0.0)):
        drawn = lesson_scenes(progress, 2000, seed=1, start=0)
        assert {one.split for one in drawn} <= {"flat", "train"}
        share = sum(one.split == "flat" for one in drawn) / len(drawn)
        assert abs(share - expected) <= 4 * (expected * (1 - expected) / len(drawn)) ** 0.5
        assert [one.index for one in drawn] == list(range(2000))


def test_the_same_place_in_the_training_shows_the_same() -> None:
    first, again = (lesson_scenes(0.3, 8, seed=4, start=16) for _ in range(2))
    assert first == again != lesson_scenes(0.3, 8, seed=4, start=24)
    rows = [lesson_rows(first, 0.3, np.random.default_rng(9)) for _ in range(2)]
    assert rows[0] == rows[1]


def test_every_kind_of_question_has_a_weight() -> None:
    assert set(WEIGHTS) == KINDS
    told = {
        one.kind for mix in (NAMES, PLACES, ALL_KINDS) for scene in scenes("flat", 40) for one in _asked(scene, mix)
    }
    assert told == KINDS


def _asked(scene, mix):
    return build_questions(scene, mix, np.random.default_rng(scene.index))


@pytest.mark.parametrize("progress", [0.1, 0.3, 0.55, 0.9])
def test_rows_of_every_lesson_fit(progress: float) -> None:
    batch = lesson_scenes(progress, 150, seed=6, start=0)
    rows = lesson_rows(batch, progress, np.random.default_rng(0))
    packed = pack(rows, layout(SPAN), SPAN)
    assert packed.ids.shape == (150, layout(SPAN).total)
    assert ((packed.targets != IGNORED) == (packed.weights > 0)).all()
    assert all(len(row.turns) == 1 + layout(SPAN).questions for row in rows)


def test_rows_without_image_are_habitual_and_as_many_as_stated() -> None:
    batch = lesson_scenes(0.9, 3000, seed=7, start=0)
    blind = [not row.image for row in lesson_rows(batch, 0.9, np.random.default_rng(1))]
    assert abs(np.mean(blind) - BLIND_SHARE) < 4 * (BLIND_SHARE * (1 - BLIND_SHARE) / len(blind)) ** 0.5
    early = lesson_scenes(0.3, 500, seed=7, start=0)
    rows = lesson_rows(early, 0.3, np.random.default_rng(1))
    assert all(row.image for one, row in zip(early, rows, strict=True) if one.split == "flat")


def test_habitual_scenes_are_asked_by_habit_flat_ones_evenly() -> None:
    def share_of_yes(split: str) -> float:
        asked = [one for scene in scenes(split, 400, seed=8) for one in _asked(scene, ALL_KINDS)]
        return float(np.mean([one.answer == "yes" for one in asked if one.kind == "existence"]))

    assert share_of_yes("flat") == pytest.approx(0.5, abs=0.05)
    assert 0.4 < share_of_yes("train") < 0.6


def test_natural_questions_are_yes_or_no_and_always_the_same() -> None:
    for scene in scenes("iid", 20):
        assert natural_questions(scene) == natural_questions(scene)
        assert {one.answer for one in natural_questions(scene)} <= {"yes", "no"}
