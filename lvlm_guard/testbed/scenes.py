"""Deprecated: the scenes are in `lvlm_guard.testbed.world.scenes`."""

from __future__ import annotations

from lvlm_guard.deprecation import moved_names

_NAMES = ("EVIDENCE", "HABITS", "SPLITS", "Scene", "absent_partners", "scene", "scenes")

__getattr__ = moved_names(__name__, {name: f"lvlm_guard.testbed.world.scenes:{name}" for name in _NAMES})
