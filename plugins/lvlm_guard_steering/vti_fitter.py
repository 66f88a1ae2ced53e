"""Directions from hallucinated to correct captions, and from a picture to what is stable about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn.functional import normalize

from lvlm_guard.fitting import (
    AnswerStates,
    Demonstration,
    Fitted,
    Track,
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
    """Fit directions `decoder [layers, hidden]` and `vision [layers, tokens, hidden]`, in fp32.

    Liu et al., arXiv 2410.15778: differences per demonstration, and of those the first principal component plus the
    mean. In the decoder, hidden states of the last token of the correct caption minus those of the hallucinated one;
    in the vision tower, the mean over pictures with most patches masked minus the picture itself. A mask puts each
    channel's mean in the place of a patch. Towers that lay the patches of several pictures end to end have one token.

    Args:
        model: The model.
        processor: Its processor.
        demonstrations: The data to fit on.
        track: Shows progress.
        trials: Masked pictures per demonstration.
        masked: Share of the patches that is masked.
        seed: Seed of the masks.
    """
    pair = _compute_tower_states(model, encode_prompts(model, processor, demonstrations[:2]))
    decoder, vision, answer_states = [], [], AnswerStates(model, processor)
    for demonstration in track(demonstrations):
        correct, hallucinated = (
            encode_answer(model, processor, demonstration, answer)[0]
            for answer in (demonstration.correct, demonstration.hallucinated)
        )
        states = [answer_states.compute(batch, 1)[:, -1] for batch in (correct, hallucinated)]
        decoder.append((states[0] - states[1]).cpu())
        vision.append(_compute_visual_difference(model, correct, trials, masked, seed, pair).cpu())
    settings = {"trials": trials, "masked": masked, "seed": seed}
    directions = {"decoder": compute_direction(torch.stack(decoder)), "vision": _compute_token_directions(vision)}
    return Fitted(directions, settings)


def compute_direction(differences: Tensor) -> Tensor:
    """Return the first principal component plus the mean of `[demonstrations, ...]`; the component points along the mean."""
    rows = differences.flatten(1).double()
    mean = rows.mean(0)
    centred = rows - mean
    weights = torch.linalg.eigh(centred @ centred.T).eigenvectors[:, -1]
    component = normalize(centred.T @ weights, dim=0)
    component = component if component @ mean >= 0 else -component
    return (mean + component).float().reshape(differences.shape[1:])


def _compute_token_directions(differences: list[Tensor]) -> Tensor:
    """Return a direction for each token, or one for their mean where their number varies, `[layers, tokens, hidden]`."""
    if len({difference.shape for difference in differences}) > 1:
        differences = [difference.mean(1, keepdim=True) for difference in differences]
    stacked = torch.stack(differences)
    return torch.stack([compute_direction(stacked[:, :, token]) for token in range(stacked.shape[2])], dim=1)


def _compute_visual_difference(
    model: Any, batch: Mapping[str, Any], trials: int, masked: float, seed: int, pair: Tensor
) -> Tensor:
    """Return the mean over masked pictures minus the picture `[layers, tokens, hidden]`."""
    unmasked, edit = _compute_tower_states(model, batch), _build_mask(model, masked)
    difference = -unmasked
    for trial in range(trials):
        difference += _compute_tower_states(model, edit_pictures(model, batch, edit, seed + trial)) / trials
    # towers with an axis of images have one more of them for two pictures; others lay all patches end to end
    has_images = unmasked.ndim == pair.ndim > 3 and pair.shape[1] > unmasked.shape[1]  # noqa: PLR2004 - images and tokens
    return difference.mean(1) if has_images else difference.flatten(1, -2).mean(1, keepdim=True)


def _compute_tower_states(model: Any, batch: Mapping[str, Any]) -> Tensor:
    """Return hidden states after each layer of the vision tower `[layers, (images,) tokens, hidden]`, in fp32."""

    def stop(*_: Any) -> None:
        raise _EncodedError

    handle = decoder_layers(model)[0].register_forward_pre_hook(stop)
    try:
        with record_outputs(vision_layers(model)) as outputs:
            model(**batch, use_cache=False)
    except _EncodedError:
        pass
    finally:
        handle.remove()
    return torch.stack(outputs)


class _EncodedError(Exception):
    """Stops a forward once the pictures are encoded; the decoder is not needed."""


def _build_mask(model: Any, share: float) -> Callable[[Tensor, Generator], Tensor]:
    """Return an edit that puts each channel's mean into a share of the patches of one picture."""
    side = getattr(getattr(model.config, "vision_config", None), "patch_size", 1)
    high, wide = side if isinstance(side, (list, tuple)) else (side, side)

    def mask(pixels: Tensor, generator: Generator) -> Tensor:
        if pixels.ndim > 3:  # noqa: PLR2004 - flattened patches, channels, frames, pixels
            hidden = _draw_patches(pixels.shape[0], share, generator).to(pixels.device)
            return torch.where(hidden[:, None, None, None], pixels.mean((0, 2, 3), keepdim=True), pixels)
        rows, columns = -(-pixels.shape[-2] // high), -(-pixels.shape[-1] // wide)
        hidden = _draw_patches(rows * columns, share, generator).to(pixels.device).view(rows, columns)
        spread = hidden.repeat_interleave(high, 0).repeat_interleave(wide, 1)[: pixels.shape[-2], : pixels.shape[-1]]
        return torch.where(spread, pixels.mean((-2, -1), keepdim=True), pixels)

    return mask


def _draw_patches(patches: int, share: float, generator: Generator) -> Tensor:
    """Return which patches are masked, bool `[patches]`."""
    masked = torch.zeros(patches, dtype=torch.bool)
    masked[torch.randperm(patches, generator=generator)[: int(share * patches)]] = True
    return masked
