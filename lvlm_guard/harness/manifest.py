"""What the entry point `lmms_eval.models` names: cheap to import, and called by lmms-eval alone."""

from __future__ import annotations

from typing import Any

MODEL = "lvlm_guard"
"""What `--model` is given."""


def models() -> list[Any]:
    """Manifests of the models offered to lmms-eval: one, of the chat kind, whose class is imported when it is chosen."""
    from lmms_eval.models.registry_v2 import ModelManifest  # noqa: PLC0415 - lmms-eval has loaded it when it asks

    return [ModelManifest(model_id=MODEL, chat_class_path="lvlm_guard.harness.lmms_eval.GuardedModel")]
