"""A tiny LLaVA with a processor of transformers, in a folder and loaded."""

import pytest
from saved_models import save_model
from speaking import transformers_speaks_again  # noqa: F401 - a fixture

from lvlm_guard import Guard, loading


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return save_model("llava", tmp_path_factory.mktemp("models") / "tiny-llava")


@pytest.fixture
def guard(folder):
    return Guard(*loading.load(str(folder), "cpu"), None)
