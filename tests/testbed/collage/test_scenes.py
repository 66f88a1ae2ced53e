"""Collages hold what they say, the same everywhere, and their pictures show it."""

from __future__ import annotations

import hashlib
from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from lvlm_guard.errors import InputError
from lvlm_guard.testbed.collage.world.drawing import SIDE, TINTS, tint
from lvlm_guard.testbed.collage.world.habits import habits
from lvlm_guard.testbed.collage.world.pictures import draw_stand_ins
from lvlm_guard.testbed.collage.world.scenes import CLEAR, CollageScene, ThingGroup
from lvlm_guard.testbed.collage.world.splits import SPLITS, scene, twins
from lvlm_guard.testbed.collage.world.things import COLOURS, NAMES, SIZES


@pytest.fixture(scope="module")
def pictures():
    return draw_stand_ins()


def test_the_same_seed_gives_the_same_scenes_and_pictures(pictures) -> None:
    assert scene("train", 7) == scene("train", 7) != scene("train", 7, seed=1)
    assert scene("iid", 6) == twins("iid", 3).scenes[0]
    assert scene("iid", 7) == twins("iid", 3).scenes[1]
    assert len({scene(split, 4).groups for split in SPLITS}) == len(SPLITS)
    one, again = (scene("train", 7).draw(pictures).tobytes() for _ in range(2))
    assert one == again


def test_the_facts_of_a_scene_are_the_same_on_every_machine() -> None:
    """A digest of integers and words; it changes with the habits and with what is drawn, and with nothing else."""
    facts = [
        (g.name, g.number, g.size, g.colour, g.cell, g.mirrored) for i in range(40) for g in scene("train", i).groups
    ]
    assert hashlib.sha256(repr(facts).encode()).hexdigest()[:12] == "693e91fbf7eb"


def test_flat_scenes_have_no_habits() -> None:
    groups = [group for index in range(1500) for group in scene("flat", index).groups]
    coloured = [group.colour == habits().colour[group.name] for group in groups if group.colour]
    sized = [group.size == habits().size[group.name] for group in groups if group.size]
    assert abs(np.mean(coloured) - 1 / len(COLOURS)) < 0.03
    assert abs(np.mean(sized) - 0.5) < 0.04
    scenes = [scene("flat", index).present for index in range(1500)]
    assert np.mean([any(habits().partner[name] in present for name in present) for present in scenes]) < 0.01


@pytest.mark.parametrize("split", SPLITS)
def test_copies_lie_in_their_quarter_and_none_over_another(split: str) -> None:
    for index in range(120):
        drawn = scene(split, index)
        assert 1 <= len(drawn.groups) <= 4
        assert len({group.cell for group in drawn.groups}) == len(drawn.groups) == len(drawn.present)
        for group in drawn.groups:
            check_places(group)


def check_places(group: ThingGroup) -> None:
    assert len(group.copies) == group.number
    assert (group.size is None) == (group.number > 1)
    half = SIDE // 2
    for copy in group.copies:
        row, column = (at // half for at in (copy.top, copy.left))
        assert (row, column) == group.cell
        assert copy.top % half + copy.side <= half + 1
        assert copy.left % half + copy.side <= half + 1
    for one, other in combinations(group.copies, 2):
        assert abs(one.left - other.left) >= one.side or abs(one.top - other.top) >= one.side
    if group.size:
        assert (group.copies[0].side > 70) == (group.size == SIZES[0])


def test_every_thing_is_seen_in_training() -> None:
    assert {name for index in range(600) for name in scene("train", index).present} == set(NAMES)


def test_twins_differ_in_the_habits_they_contrast() -> None:
    for number in range(80):
        both = twins("shift", number)
        kinds = {contrast.habit for contrast in both.contrasts}
        assert {"partner", "colour", "size"} <= kinds
        for contrast in both.contrasts:
            assert [keeps(drawn, contrast) for drawn in both.scenes] == [contrast.keeper == at for at in range(2)]


def keeps(drawn: CollageScene, contrast) -> bool:
    known, group = habits(), drawn.find(contrast.subject)
    assert group is not None
    if contrast.habit == "partner":
        assert (contrast.second in drawn.present) != (known.partner[contrast.subject] in drawn.present)
        assert known.partner[contrast.second] not in drawn.present
        return known.partner[contrast.subject] in drawn.present
    if contrast.habit == "order":
        other = drawn.find(contrast.second)
        assert other is not None
        axis = int(contrast.side == "left")
        return group.cell[axis] < other.cell[axis]
    usual = {"colour": known.colour, "number": known.number, "size": known.size}[contrast.habit]
    return getattr(group, contrast.habit) == usual[contrast.subject]


def test_twins_keep_and_break_equally_often_in_either_place() -> None:
    keepers = [contrast.keeper for number in range(200) for contrast in twins("iid", number).contrasts]
    assert abs(np.mean(keepers) - 0.5) < 0.06


def test_a_picture_shows_its_things_and_nothing_else(pictures) -> None:
    for index in range(6):
        drawn = scene("train", index, evidence=CLEAR)
        empty = CollageScene(drawn.split, drawn.seed, drawn.index, (), drawn.backdrop)
        picture, behind = (np.asarray(one.draw(pictures), dtype=int) for one in (drawn, empty))
        assert picture.shape == (SIDE, SIDE, 3)
        changed = (abs(picture - behind).sum(-1) > 0).any(-1), (abs(picture - behind).sum(-1) > 0).any(-2)
        places = np.zeros((SIDE, SIDE), dtype=bool)
        for group in drawn.groups:
            for copy in group.copies:
                places[copy.top : copy.top + copy.side, copy.left : copy.left + copy.side] = True
        assert changed[0].any()
        assert not (abs(picture - behind).sum(-1) > 0)[~places].any()


@pytest.mark.parametrize("colour", COLOURS)
def test_a_tint_is_nearest_to_its_own_colour(colour: str) -> None:
    ramp = np.ones((32, 32, 4), dtype=np.float32)
    ramp[..., :3] = np.linspace(0.1, 0.9, 32, dtype=np.float32)[None, :, None] * np.asarray([0.9, 0.4, 0.6], np.float32)
    middle = tint(ramp, colour)[..., :3].mean((0, 1))
    distances = {name: float(abs(middle - np.asarray(tone)).sum()) for name, tone in TINTS.items()}
    assert min(distances, key=distances.__getitem__) == colour
    assert tint(ramp, colour)[..., :3].std() > 0.02, "light and shade are gone"


@pytest.mark.parametrize(
    ("split", "index", "seed", "message"),
    [("test", 0, 0, "no split named"), ("iid", -1, 0, "not be negative"), ("iid", 0, -1, "not be negative")],
)
def test_scenes_that_there_are_not_are_refused(split: str, index: int, seed: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        scene(split, index, seed)


@pytest.mark.parametrize("split", ["train", "flat"])
def test_the_training_has_no_twins(split: str) -> None:
    with pytest.raises(InputError, match="one by one"):
        twins(split, 0)


@pytest.mark.collage
def test_both_renderings_have_a_clear_picture_of_everything(fetched) -> None:
    for pictures in fetched.values():
        for name in NAMES:
            cut = pictures.cut_out(name, 96)
            assert max(cut.shape[:2]) == 96
            assert 0.15 < (cut[..., 3] > 0.5).mean() <= 1, name
    cuts = [[pictures.cut_out(name, 48) for name in NAMES] for pictures in fetched.values()]
    assert all(one.shape != other.shape or abs(one - other).mean() > 0.01 for one, other in zip(*cuts, strict=True))


@pytest.mark.collage
def test_a_scene_of_real_pictures_is_drawn(fetched) -> None:
    drawn = scene("shift", 0).draw(fetched["noto"])
    assert isinstance(drawn, Image.Image)
    assert drawn.size == (SIDE, SIDE)
