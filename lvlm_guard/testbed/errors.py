"""The error of the testbed."""

from __future__ import annotations

from lvlm_guard.errors import GuardError


class TestbedError(GuardError):
    """Something is wrong with the bundled testbed, or with what it was asked for."""

    __test__ = False
