"""Strategies are fitted on collages as on drawn scenes: labelled pictures that show what they say, demonstrations that lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from lvlm_guard.cli import app
from lvlm_guard.errors import InputError
from lvlm_guard.testbed import sheets
from lvlm_guard.testbed.collage.demonstrations import build_demonstrations
from lvlm_guard.testbed.collage.folders import VARIABLE
from lvlm_guard.testbed.collage.labelled import SPLIT, label_scenes
from lvlm_guard.testbed.collage.world.captions import caption
from lvlm_guard.testbed.collage.world.mentions import read_mentions
from lvlm_guard.testbed.collage.world.splits import scene
from lvlm_guard.testbed.fit_data import FIT_DATA


@pytest.mark.usefixtures("at_home")
def test_labels_hold_every_copy_in_its_box() -> None:
    for index, labelled in enumerate(label_scenes(SPLIT, 12)):
        drawn = scene(SPLIT, index)
        assert len(labelled.objects) == sum(group.number for group in drawn.groups)
        for thing in labelled.objects:
            group = drawn.find(thing.name)
            assert thing.attributes == ((group.colour,) if group.colour else ())
            left, top, right, bottom = thing.box
            assert 0 <= left < right <= 224
            assert 0 <= top < bottom <= 224
            assert (int(top) // 112, int(left) // 112) == group.cell


@pytest.mark.usefixtures("at_home")
def test_demonstrations_are_true_and_have_something_invented() -> None:
    ways = set()
    for number, example in enumerate(build_demonstrations(30)):
        drawn = scene("train", number)
        assert {mention.name for mention in read_mentions(example.correct)} == drawn.present
        correct, hallucinated = (
            {(m.name, m.colour) for m in read_mentions(text)} for text in (example.correct, example.hallucinated)
        )
        assert hallucinated - correct
        ways.add(({name for name, _ in hallucinated} - drawn.present != set(), len(hallucinated) - len(correct)))
    assert ways == {(True, 1), (True, 0), (False, 0)}


def test_both_worlds_have_data_to_fit_on(at_home: Path) -> None:
    for name, data in FIT_DATA.items():
        (picture,) = data.label(data.pictures, 1, 0)
        assert picture.objects, name
        (example,) = data.demonstrate(1, 0)
        assert example.correct != example.hallucinated, name
        assert len(data.label(data.calibration, 2, 0)) == 2


def test_a_sheet_shows_scenes_over_their_captions(
    at_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["testbed", "show", "--world", "collage", "--count", "7", "--out", "seen.png"])
    assert "7 scenes of shift" in result.output
    with Image.open(tmp_path / "seen.png") as sheet:
        assert sheet.width > 6 * 256
    drawn = sheets.draw_png("collage", "iid", 0, None)
    assert drawn == sheets.draw_png("collage", "iid", 0, None) != sheets.draw_png("collage", "iid", 1, None)
    assert caption(scene("iid", 0))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--world", "colage"], "Did you mean 'collage'? Known: collage, scenes."),
        (["--world", "collage", "--split", "counterfactual"], "no split named 'counterfactual'"),
        (["--world", "collage"], "lvlm-guard testbed build --world collage"),
        (["--split", "shift"], "no split named 'shift'"),
    ],
)
def test_what_cannot_be_shown_is_refused(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["testbed", "show", *arguments])
    assert isinstance(result.exception, InputError)
    assert words in str(result.exception)
    assert not list(tmp_path.iterdir())


def test_pictures_are_not_all_alike(at_home: Path) -> None:
    pictures = [np.asarray(labelled.picture, dtype=int) for labelled in label_scenes(SPLIT, 2)]
    assert abs(pictures[0] - pictures[1]).mean() > 1
