"""Arguments of a decode that goes on from a prefix: whole ids, positions of the model's own, no pixels, a copied cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from lvlm_guard import anatomy
from lvlm_guard.cache_names import CACHE_NAMES, name_of_cache
from lvlm_guard.errors import GuardError, ModelRefused
from lvlm_guard.forward.caches.copying import copy_rows
from lvlm_guard.forward.prefixes.prefix import Prefix
from lvlm_guard.forward.preparation import PreparedDecode, capture_decode

ALIGNED_IMAGE_INPUTS = ("cross_attention_mask",)
"""Inputs about images that have an entry for each token, which every forward needs."""
ENCODED = "mm_encoder_outputs"


def leave_out_images(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return model inputs without those about images, but for what lies beside the tokens."""
    return {
        name: value
        for name, value in inputs.items()
        if name in ALIGNED_IMAGE_INPUTS or not anatomy.is_image_input(name)
    }


def capture_positions(
    generate: Callable[..., Any], inputs: Mapping[str, Any], settings: Mapping[str, Any]
) -> PreparedDecode:
    """Return a decode as generate prepares it from whole prompts without pixels, with the positions that it gives them.

    Sizes of images stay, for positions are made of them. Positions are always made anew: what a module remembers of them
    belongs to whoever ran last.

    Raises:
        ModelRefused: The model cannot prepare prompts whose images were encoded before.
    """
    without_pixels = {
        name: value
        for name, value in inputs.items()
        if name not in (ENCODED, *CACHE_NAMES) and not anatomy.is_pixels(name, value)
    }
    try:
        prepared = capture_decode(generate, without_pixels, settings)
    except GuardError:
        raise
    except Exception as error:
        model = type(getattr(generate, "__self__", None)).__name__
        raise ModelRefused(
            f"{model} cannot go on from a prefix, for it does not prepare prompts without their pixels: {error}."
        ) from error
    if anatomy.rope_owners(prepared.module) and not isinstance(prepared.kwargs.get("position_ids"), Tensor):
        raise ModelRefused(
            f"{type(prepared.module).__name__} cannot go on from a prefix, for this version of transformers makes its rotary positions "
            "inside the forward, from what it remembers of whoever ran last: upgrade transformers."
        )
    prepared.kwargs = leave_out_images(prepared.kwargs)
    return prepared


def continue_prefix(prepared: PreparedDecode, prefix: Prefix) -> PreparedDecode:
    """Return a decode whose rows go on from copies of a prefix, which their ids begin with."""
    kwargs = {**prepared.kwargs, name_of_cache(prepared.kwargs): copy_rows(prefix.cache, prepared.input_ids.shape[0])}
    return PreparedDecode(prepared.module, prepared.input_ids, kwargs, prepared.settings)


def continuing_inputs(inputs: Mapping[str, Any], prepared: PreparedDecode, prefix: Prefix) -> dict[str, Any]:
    """Return model inputs with which generate goes on from copies of a prefix.

    Args:
        inputs: Inputs of the whole prompts `[requests, length]`.
        prepared: The decode that generate prepares of them, with a row for every beam.
        prefix: What their ids begin with.
    """
    continued = leave_out_images(inputs)
    positions = prepared.kwargs.get("position_ids")
    if isinstance(positions, Tensor):
        continued["position_ids"] = positions[..., :: prepared.rows_per_request, :]
    continued[name_of_cache(prepared.kwargs)] = copy_rows(prefix.cache, prepared.input_ids.shape[0])
    return continued
