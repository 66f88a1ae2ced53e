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
from lvlm_guard.strategy.fitters import Demonstration, Fitter, LabelledPictures, Track


@torch.no_grad()
def fit(
    kind: str,
    model: Any,
    processor: Any,
    data: Sequence[Demonstration] | LabelledPictures,
    *,
    model_id: str = "",
    split: str = "",
    track: Track = iter,
) -> Artefact:
    """Fit the artefact of one strategy on one model.

    Args:
        kind: Name of the strategy, or another name of its fitter; a distribution must offer one for it.
        model: The model, in eval mode.
        processor: Its processor.
        data: At least two demonstrations, or labelled pictures where the fitter asks for those.
        model_id: Name of the model in the manifest.
        split: Name of the data in the manifest.
        track: Shows progress.

    Raises:
        InputError: No fitter for this kind, too little data or data of another kind, or a processor without a chat template.
        FitRefused: What was fitted breaks answers on calibration data, or adds nothing there.
    """
    fitter = fitter_catalogue().find(kind)
    check_chat_template(processor)
    count = _check_data(fitter, data)
    fitted = fitter.fit(model, processor, data, track)
    manifest = {
        "model": model_id or getattr(model.config, "_name_or_path", "") or type(model).__name__,
        **describe_model(model),
        "split": split,
        "settings": {fitter.data: count, **fitted.settings},
        "lvlm_guard": lvlm_guard.__version__,
    }
    return Artefact(fitter.strategy, fitted.tensors, manifest)


def _check_data(fitter: Fitter, data: Sequence[Demonstration] | LabelledPictures) -> int:
    """Return how many demonstrations or pictures there are.

    Raises:
        InputError: Fewer than two, or the other kind of data.
    """
    if isinstance(data, LabelledPictures) != (fitter.data == "pictures"):
        received = "labelled pictures" if isinstance(data, LabelledPictures) else "demonstrations"
        raise InputError(f"{fitter.strategy} is fitted on {fitter.data}, got {received}.")
    count = len(data.pictures if isinstance(data, LabelledPictures) else data)
    if count < 2:  # noqa: PLR2004 - a single one has no variance
        raise InputError(f"{fitter.strategy} is fitted on 2 {fitter.data} or more, got {count}.")
    return count
