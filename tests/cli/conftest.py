"""The command line quietens transformers for its process; tests share theirs."""

import pytest
import transformers


@pytest.fixture(autouse=True)
def transformers_speaks_again():
    before = transformers.logging.get_verbosity()
    yield
    transformers.logging.set_verbosity(before)
    transformers.logging.enable_progress_bar()
