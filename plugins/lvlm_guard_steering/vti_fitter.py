"""Directions from hallucinated to correct captions, and from a picture to what is stable about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn.functional import normalize

from lvlm_guard.fitting import (
    Demonstration,
    Fitted,
    Track,
    compute_hidden_states,
    decoder_layers,
    edit_pictures,
    encode_answer,
    encode_prompts,
    record_outputs,
    vision_layers,
)

TRIALS = 50
MASKED = 0.99


def fit_vti(
    model: Any,
    processor: Any,
    demonstrations: Sequence[Demonstration],
    track: Track = iter,
    *,
    trials: int = TRIALS,
    masked: float = MASKED,
    seed: int = 0,
) -> Fitted:
    """Directions `decoder [layers, hidden]` and `vision [layers, tokens, hidden]`.

    Liu et al., arXiv 2410.15778: differences per demonstration, and of those the first principal component plus the
    mean. In the decoder, hidden states of the last token of the correct caption minus those of the hallucinated one;
    in the vision tower, the mean over pictures with most patches masked minus the picture as it is. A mask puts each
    channel's mean in the place of a patch. Towers that lay the patches of several pictures end to end have one token.

    Args:
        model: The model.
        processor: Its processor.
        demonstrations: What to fit on.
        track: Shows progress.
        trials: Masked pictures per demonstration.
        masked: Share of the patches that is masked.
        seed: Seed of the masks.
    """
    together = _tower_states(model, encode_prompts(model, processor, demonstrations[:2]))
    decoder, vision = [], []
    for demonstration in track(demonstrations):
        correct, hallucinated = (
            encode_answer(model, processor, demonstration, answer)[0]
            for answer in (demonstration.correct, demonstration.hallucinated)
        )
        decoder.append(
            (compute_hidden_states(model, correct)[:, -1] - compute_hidden_states(model, hallucinated)[:, -1]).cpu()
        )
        vision.append(_visual_difference(model, correct, trials, masked, seed, together).cpu())
    settings = {"trials": trials, "masked": masked, "seed": seed}
    return Fitted({"decoder": compute_direction(torch.stack(decoder)), "vision": _per_token(vision)}, settings)


def compute_direction(differences: Tensor) -> Tensor:
    """First principal component plus mean of `[demonstrations, ...]`; the component points along the mean."""
    rows = differences.flatten(1).double()
    mean = rows.mean(0)
    centred = rows - mean
    weights = torch.linalg.eigh(centred @ centred.T).eigenvectors[:, -1]
    component = normalize(centred.T @ weights, dim=0)
    component = component if component @ mean >= 0 else -component
    return (mean + component).float().reshape(differences.shape[1:])


def _per_token(differences: list[Tensor]) -> Tensor:
    """A direction for each token; for the mean over tokens where their number varies."""
    if len({one.shape for one in differences}) > 1:
        differences = [one.mean(1, keepdim=True) for one in differences]
    stacked = torch.stack(differences)
    return torch.stack([compute_direction(stacked[:, :, token]) for token in range(stacked.shape[2])], dim=1)


def _visual_difference(
    model: Any, batch: Mapping[str, Any], trials: int, masked: float, seed: int, together: Tensor
) -> Tensor:
    """Mean over masked pictures minus the picture `[layers, tokens, hidden]`."""
    whole, edit = _tower_states(model, batch), _build_mask(model, masked)
    difference = -whole
    for trial in range(trials):
        difference += _tower_states(model, edit_pictures(model, batch, edit, seed + trial)) / trials
    apart = whole.ndim == together.ndim > 3 and together.shape[1] > whole.shape[1]  # noqa: PLR2004 - images and tokens
    return difference.mean(1) if apart else difference.flatten(1, -2).mean(1, keepdim=True)


def _tower_states(model: Any, batch: Mapping[str, Any]) -> Tensor:
    """Hidden states after each layer of the vision tower `[layers, (images,) tokens, hidden]`, in fp32."""

    def stop(*_: Any) -> None:
        raise _EncodedError

    handle = decoder_layers(model)[0].register_forward_pre_hook(stop)
    try:
        with record_outputs(vision_layers(model)) as seen:
            model(**batch, use_cache=False)
    except _EncodedError:
        pass
    finally:
        handle.remove()
    return torch.stack(seen)


class _EncodedError(Exception):
    """The pictures are encoded; what the decoder would say is not wanted."""


def _build_mask(model: Any, share: float) -> Callable[[Tensor, Generator], Tensor]:
    """An edit that puts each channel's mean into a share of the patches of one picture."""
    side = getattr(getattr(model.config, "vision_config", None), "patch_size", 1)
    high, wide = side if isinstance(side, (list, tuple)) else (side, side)

    def mask(pixels: Tensor, generator: Generator) -> Tensor:
        if pixels.ndim > 3:  # noqa: PLR2004 - flattened patches, channels, frames, pixels
            hidden = _chosen(pixels.shape[0], share, generator).to(pixels.device)
            return torch.where(hidden[:, None, None, None], pixels.mean((0, 2, 3), keepdim=True), pixels)
        rows, columns = -(-pixels.shape[-2] // high), -(-pixels.shape[-1] // wide)
        hidden = _chosen(rows * columns, share, generator).to(pixels.device).view(rows, columns)
        spread = hidden.repeat_interleave(high, 0).repeat_interleave(wide, 1)[: pixels.shape[-2], : pixels.shape[-1]]
        return torch.where(spread, pixels.mean((-2, -1), keepdim=True), pixels)

    return mask


def _chosen(patches: int, share: float, generator: Generator) -> Tensor:
    """Which patches are masked, bool `[patches]`."""
    chosen = torch.zeros(patches, dtype=torch.bool)
    chosen[torch.randperm(patches, generator=generator)[: int(share * patches)]] = True
    return chosen
