"""Deprecated: plans and manifests are in `lvlm_guard.bench.running.manifest`."""

from __future__ import annotations

from lvlm_guard.deprecation import moved_names

_NAMES = (
    "DECODING", "PACKAGES", "PROBLEMS", "VOLATILE", "Chosen", "Plan", "describe", "hardware", "model_identity", "told_model",
    "versions",
)  # fmt: skip

__getattr__ = moved_names(__name__, {name: f"lvlm_guard.bench.running.manifest:{name}" for name in _NAMES})
