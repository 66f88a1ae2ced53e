"""A small trained vision-language model that hallucinates, and the drawn scenes that show it."""

from __future__ import annotations

from lvlm_guard.testbed.collage import Lite0Model as Lite0Model
from lvlm_guard.testbed.errors import TestbedError as TestbedError
from lvlm_guard.testbed.model import load as load
from lvlm_guard.testbed.world.scenes import Scene as Scene

__all__ = ["Scene", "TestbedError", "load"]
