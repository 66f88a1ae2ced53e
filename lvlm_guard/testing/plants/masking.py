"""A decoder whose text sees less of the image, or none of it, in some layers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lvlm_guard import anatomy
from lvlm_guard.errors import ModelRefused
from lvlm_guard.forward.installations import hook_with_kwargs
from lvlm_guard.testing.plants.subject import PlantBed, Undo


def mask_image(subject: PlantBed, layers: Iterable[int], penalty: float = math.inf) -> Undo:
    """Take `penalty` off the scores of image keys wherever text attends, in some layers.

    Raises:
        ModelRefused: The model names no placeholder for images.
    """
    token = anatomy.image_token_id(subject.model.config)
    if token is None:
        raise ModelRefused(f"{type(subject.model).__name__} names no placeholder for images, so none can be masked.")
    masking = _Masking(token, penalty)
    parts = [anatomy.layer_part(subject.layers[layer], "attention") for layer in layers]
    handles = [hook_with_kwargs(subject.model, masking.note_tokens, before=True)]
    handles += [hook_with_kwargs(part, masking.edit_mask, before=True) for part in parts]

    def undo() -> None:
        for handle in handles:
            handle.remove()

    return undo


class _Masking:
    """Remembers where the image is in the prompt, and edits the masks of attention.

    Args:
        token: Id of the placeholder.
        penalty: What is taken off scores.
    """

    def __init__(self, token: int, penalty: float) -> None:
        self._token = token
        self._penalty = penalty
        self._image: Tensor | None = None

    def note_tokens(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Remember the image positions of a prompt."""
        ids = kwargs.get("input_ids", args[0] if args else None)
        if isinstance(ids, Tensor) and bool((ids == self._token).any()):
            self._image = ids == self._token

    def edit_mask(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Hide the image from text in one attention call; calls of other rows are left alone."""
        states = kwargs.get("hidden_states", args[0] if args else None)
        if self._image is None or not isinstance(states, Tensor) or states.shape[0] != self._image.shape[0]:
            return None
        mask = kwargs.get("attention_mask")
        queries, keys = states.shape[1], states.shape[1] if mask is None else mask.shape[-1]
        if keys < self._image.shape[1]:
            return None
        return args, {**kwargs, "attention_mask": self._hide(_as_numbers(mask, states, queries), queries, keys)}

    def _hide(self, mask: Tensor, queries: int, keys: int) -> Tensor:
        assert self._image is not None
        image = torch.zeros(len(mask), keys, dtype=torch.bool, device=mask.device)
        image[:, : self._image.shape[1]] = self._image
        text = ~image[:, -queries:] if queries == keys else torch.ones_like(image[:, :queries])
        where = text[:, None, :, None] & image[:, None, None, :]
        lowest = torch.finfo(mask.dtype).min
        hidden = (
            torch.full_like(mask, lowest) if math.isinf(self._penalty) else (mask - self._penalty).clamp_min(lowest)
        )
        return torch.where(where, hidden, mask)


def _as_numbers(mask: Tensor | None, states: Tensor, queries: int) -> Tensor:
    """Return a mask as numbers added to scores `[rows, 1, queries, keys]`; causal where there is none."""
    lowest = torch.finfo(states.dtype).min
    if mask is None:
        later = torch.ones(queries, queries, dtype=torch.bool, device=states.device).triu(1)
        return torch.zeros(len(states), 1, queries, queries, dtype=states.dtype, device=states.device).masked_fill(
            later, lowest
        )
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, dtype=states.dtype, device=mask.device).masked_fill(~mask, lowest)
    return mask
