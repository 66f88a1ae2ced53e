"""Run the fitter of a strategy, and put its result into an artefact."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

import lvlm_guard
from lvlm_guard.errors import InputError
from lvlm_guard.fitting.encoding import check_chat_template
from lvlm_guard.host.fitters import fitter_catalogue
from lvlm_guard.strategy.artefacts import Artefact, describe_model
from lvlm_guard.strategy.fitters import Demonstration, Track


@torch.no_grad()
def fit(
    kind: str,
    model: Any,
    processor: Any,
    demonstrations: Sequence[Demonstration],
    *,
    model_id: str = "",
    split: str = "",
    track: Track = iter,
) -> Artefact:
    """Fit the artefact of one strategy on one model.

    Args:
        kind: Name of the strategy; a distribution must offer a fitter for it.
        model: The model, in eval mode.
        processor: Its processor.
        demonstrations: At least two.
        model_id: Name of the model in the manifest.
        split: Name of the data in the manifest.
        track: Shows progress.

    Raises:
        InputError: No fitter for this kind, too few demonstrations, or a processor without a chat template.
    """
    fitter = fitter_catalogue().find(kind)
    check_chat_template(processor)
    if len(demonstrations) < 2:  # noqa: PLR2004 - a single one has no variance
        raise InputError(f"{kind} is fitted on 2 demonstrations or more, got {len(demonstrations)}.")
    fitted = fitter.fit(model, processor, demonstrations, track)
    manifest = {
        "model": model_id or getattr(model.config, "_name_or_path", "") or type(model).__name__,
        **describe_model(model),
        "split": split,
        "settings": {"demonstrations": len(demonstrations), **fitted.settings},
        "lvlm_guard": lvlm_guard.__version__,
    }
    return Artefact(kind, fitted.tensors, manifest)
