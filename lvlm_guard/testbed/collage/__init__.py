"""A second world: pictures of real things, and a model of real parts that brings the priors of its language model along."""

from __future__ import annotations

from lvlm_guard.testbed.collage.vision import Lite0Model as Lite0Model

__all__ = ["Lite0Model"]
