"""Loading quietens transformers for its process; tests share theirs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import transformers


@pytest.fixture(autouse=True)
def transformers_speaks_again() -> Iterator[None]:
    """Put back how much transformers says."""
    before = transformers.logging.get_verbosity()
    yield
    transformers.logging.set_verbosity(before)
    transformers.logging.enable_progress_bar()
