"""The second world: collages of real pictures with names, described by a language model that knew English before it saw any."""

from __future__ import annotations

from lvlm_guard.testbed.collage.vision import Lite0Model as Lite0Model

__all__ = ["Lite0Model"]
