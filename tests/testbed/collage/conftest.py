"""The collage world in tests: drawn pictures for everybody, fetched ones for what is marked `collage`."""

from __future__ import annotations

from pathlib import Path

import collage_pictures
import pytest

from lvlm_guard.errors import InputError
from lvlm_guard.testbed.collage.folders import VARIABLE
from lvlm_guard.testbed.collage.world.picture_parts import open_pictures
from lvlm_guard.testbed.collage.world.pictures import ThingPictures


@pytest.fixture(scope="session")
def drawn_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    collage_pictures.write_pictures(home / "collage")
    return home


@pytest.fixture
def at_home(drawn_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the parts holds drawn pictures."""
    monkeypatch.setenv(VARIABLE, str(drawn_home))
    return drawn_home / "collage"


@pytest.fixture(scope="session")
def fetched() -> dict[str, ThingPictures]:
    """The real pictures of both renderings."""
    try:
        return {rendering: open_pictures(rendering) for rendering in ("fluent", "noto")}
    except InputError as absent:
        pytest.skip(str(absent))
