"""A small trained vision-language model that hallucinates, and the drawn scenes that show it."""

from __future__ import annotations

from .errors import TestbedError as TestbedError
from .model import load as load
from .scenes import Scene as Scene

__all__ = ["Scene", "TestbedError", "load"]
