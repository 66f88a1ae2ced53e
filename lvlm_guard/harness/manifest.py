"""The target of the entry point `lmms_eval.models`: cheap to import, and called only by lmms-eval."""

from __future__ import annotations

from typing import Any

MODEL = "lvlm_guard"
"""The value to pass to `--model`."""


def models() -> list[Any]:
    """Return the manifests of the models offered to lmms-eval: one of the chat kind, whose class is imported on use."""
    from lmms_eval.models.registry_v2 import ModelManifest  # noqa: PLC0415 - lmms-eval has loaded it before it calls this

    return [ModelManifest(model_id=MODEL, chat_class_path="lvlm_guard.harness.lmms_eval.GuardedModel")]
