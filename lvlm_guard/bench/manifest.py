"""Deprecated: plans and manifests are in `lvlm_guard.bench.running.manifest`."""

from __future__ import annotations

from lvlm_guard.deprecation import moved_names

_NAMES = {
    **{
        name: name
        for name in (
            "DECODING",
            "PACKAGES",
            "PROBLEMS",
            "VOLATILE",
            "describe",
            "hardware",
            "model_identity",
            "versions",
        )
    },
    "Chosen": "SuiteChoice",
    "Plan": "RunPlan",
    "told_model": "describe_model",
}

__getattr__ = moved_names(
    __name__, {name: f"lvlm_guard.bench.running.manifest:{new_name}" for name, new_name in _NAMES.items()}
)
