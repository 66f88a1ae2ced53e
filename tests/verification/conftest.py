"""A tiny LLaVA with a processor of transformers, in a folder and loaded."""

import pytest
import transformers
from saved_models import save_model

from lvlm_guard import Guard, loading


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return save_model("llava", tmp_path_factory.mktemp("models") / "tiny-llava")


@pytest.fixture
def guard(folder):
    return Guard(*loading.load(str(folder), "cpu"), None)


@pytest.fixture(autouse=True)
def transformers_speaks_again():
    before = transformers.logging.get_verbosity()
    yield
    transformers.logging.set_verbosity(before)
    transformers.logging.enable_progress_bar()
