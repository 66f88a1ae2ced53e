"""What waits for ever fails within its limit, and the message says where it waits."""

from __future__ import annotations

import threading

import pytest
from time_limits import run_within


def test_what_waits_for_ever_fails_and_says_where():
    def wait_for_godot():
        threading.Event().wait()

    with pytest.raises(AssertionError, match=r"(?s)the play: not done within 0.05 seconds.*wait_for_godot"):
        run_within(0.05, "the play", wait_for_godot)


def test_what_ends_in_time_returns_or_raises_what_it_did():
    assert run_within(60, "a sum", lambda: 1 + 1) == 2
    with pytest.raises(ZeroDivisionError):
        run_within(60, "a quotient", lambda: 1 / 0)
