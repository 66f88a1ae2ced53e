"""Planted faults: a sound model made faulty in a known place, so that a diagnosis can be judged; each has its undo."""

from lvlm_guard.testing.plants.planting import KINDS as KINDS
from lvlm_guard.testing.plants.planting import Kind as Kind
from lvlm_guard.testing.plants.planting import Plant as Plant
from lvlm_guard.testing.plants.planting import draw_plant as draw_plant
from lvlm_guard.testing.plants.planting import planted as planted

__all__ = ["KINDS", "Kind", "Plant", "draw_plant", "planted"]
