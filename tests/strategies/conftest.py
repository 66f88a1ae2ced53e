"""Parts of the contract that take longest are run for a strategy of each kind; for the others they are left to the slow tests."""

from __future__ import annotations

from pathlib import Path

import pytest

LONGEST = (
    "test_no_token_waits_for_the_device",
    "test_a_model_on_two_devices_says_the_same",
    "test_two_threads_get_their_own_answers",
)
SAMPLE = ("TestVCD", "TestPAI", "TestDoLa", "TestVSV", "TestRevise", "TestPatchEvidence")
"""One that adds a branch, one that edits attention, one that reads layers, one that edits states, one that revises, one that is fitted."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is left out."""
    for item in items:
        if Path(__file__).parent not in item.path.parents or item.cls is None or item.cls.__name__ in SAMPLE:
            continue
        if item.name.split("[")[0] in LONGEST:
            item.add_marker(pytest.mark.slow)
