"""Errors of answers that an engine could not finish."""

from __future__ import annotations

from typing import Any

from lvlm_guard.errors import GuardError


class EngineFailed(GuardError):
    """Answers of an engine ended with an error.

    Attributes:
        outputs: The engine's outputs of all requests of the call, those that are complete included.
    """

    def __init__(self, message: str, outputs: Any) -> None:
        super().__init__(message)
        self.outputs = outputs
