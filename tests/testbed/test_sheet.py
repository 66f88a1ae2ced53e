"""The picture sheet."""

import errno

import numpy as np
import pytest

from lvlm_guard.errors import InputError
from lvlm_guard.testbed import TestbedError, files
from lvlm_guard.testbed.world import sheet
from lvlm_guard.testbed.world.compose import BrokenHabit
from lvlm_guard.testbed.world.scenes import scenes


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 1, 1), (6, 6, 1), (8, 6, 2)])
def test_a_sheet_holds_six_in_a_row(count, columns, rows):
    drawn = sheet.draw_sheet(scenes("iid", count))
    assert drawn.width == sheet.GAP + columns * (sheet.TILE + sheet.GAP)
    assert rows * sheet.TILE < drawn.height < rows * 2 * sheet.TILE


def test_the_same_scenes_give_the_same_sheet():
    first, again = (sheet.png(sheet.draw_sheet(scenes("counterfactual", 4))) for _ in range(2))
    assert first == again
    assert first != sheet.png(sheet.draw_sheet(scenes("counterfactual", 4, seed=1)))


def test_scenes_are_enlarged_exactly_and_captioned():
    scene = scenes("flat", 1)[0]
    pixels = np.asarray(sheet.draw_sheet([scene]))
    tile = pixels[sheet.GAP : sheet.GAP + sheet.TILE, sheet.GAP : sheet.GAP + sheet.TILE]
    assert np.array_equal(tile[:: sheet.SCALE, :: sheet.SCALE], scene.pixels)
    assert pixels[sheet.GAP + sheet.TILE :].min() < 60


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (BrokenHabit("object", "pan", "egg"), "pan without its egg"),
        (BrokenHabit("attribute", "pan", "blue"), "pan not blue"),
        (BrokenHabit("relation", "pan", "egg"), "pan right of egg"),
    ],
)
def test_the_broken_habit_in_words(broken, words):
    assert sheet.oddity(broken) == words


def test_no_scenes_are_refused():
    with pytest.raises(InputError, match="at least one scene"):
        sheet.draw_sheet([])


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "sheet.png"
    files.write_whole(path, b"old")
    with pytest.raises(TypeError):
        files.write_whole(path, "not bytes")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_a_clear_error_and_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "sheet.png"
    files.write_whole(path, b"old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fdopen", full)
    with pytest.raises(TestbedError, match=r"sheet\.png could not be written: No space left on device"):
        files.write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_no_destination(tmp_path):
    with pytest.raises(InputError, match="is a folder"):
        files.check_destination(tmp_path, "sheet.png")
