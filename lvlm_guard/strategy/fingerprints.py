"""What tells one model from another of the same shape: the revision of its config, and digests of some of its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from lvlm_guard import anatomy
from lvlm_guard.errors import ModelRefused

MATRICES = 8
"""Weights of the decoder that are looked at, evenly over its sorted names."""
VALUES = 1024
"""Values of each, evenly over it."""
PRECISIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16}
"""What weights in full precision are rounded to; those in half precision have a digest in their own alone."""


def find_revision(config: Any) -> str:
    """Return the commit that a config was downloaded at, or nothing."""
    return str(getattr(config, "_commit_hash", None) or "")


@torch.no_grad()
def digest_weights(module: Any) -> dict[str, dict[str, str]]:
    """Return digests of some weights of the decoder, by name and precision; none where no decoder is found.

    A model in half precision is known as the one it was loaded from. Quantised weights, and weights that are not in memory,
    are left out.
    """
    try:
        named = dict(anatomy.decoder(module).named_parameters())
    except ModelRefused:
        return {}
    chosen = choose_weights(name for name, value in named.items() if value.ndim > 1)
    return {name: digest_weight(named[name]) for name in chosen if _is_readable(named[name])}


def choose_weights(names: Iterable[str]) -> list[str]:
    """Return which of a decoder's matrices are looked at, by their names inside it."""
    ordered = sorted(names)
    return ordered[:: max(len(ordered) // MATRICES, 1)][:MATRICES]


@torch.no_grad()
def digest_image_side(model: Any) -> dict[str, dict[str, str]]:
    """Return one digest, by precision, of all matrices that are not the decoder's, those of the projector among them.

    None where the decoder is not found, where nothing else is there, or where the other weights are quantised or not in memory.
    """
    try:
        of_decoder = {id(value) for value in anatomy.decoder(model).parameters()}
    except ModelRefused:
        return {}
    of_decoder |= {id(value) for value in _text_ends(model)}
    named = {name: value for name, value in model.named_parameters() if value.ndim > 1 and id(value) not in of_decoder}
    if not named or not all(_is_readable(value) for value in named.values()):
        return {}
    digests = [digest_weight(value) for _, value in sorted(named.items())]
    shared = set(digests[0]).intersection(*digests)
    joined = {
        precision: hashlib.blake2b("".join(digest[precision] for digest in digests).encode(), digest_size=8).hexdigest()
        for precision in sorted(shared)
    }
    return {"image_side": joined} if joined else {}


def _text_ends(model: Any) -> list[Tensor]:
    """Return the weights of the head and of the token embeddings, where the model shows them."""
    ends = []
    for find in (model.get_output_embeddings, model.get_input_embeddings):
        try:
            weight = getattr(find(), "weight", None)
        except (NotImplementedError, AttributeError):
            continue
        ends += [] if weight is None else [weight]
    return ends


def differ(fitted: Mapping[str, Any], loaded: Mapping[str, Mapping[str, str]]) -> bool | None:
    """Return whether a digest that both know differs; None where they know none together."""
    pairs = [
        (digests[precision], digest)
        for name, by_precision in loaded.items()
        if isinstance(digests := fitted.get(name), Mapping)
        for precision, digest in by_precision.items()
        if precision in digests
    ]
    return any(before != after for before, after in pairs) if pairs else None


def _is_readable(value: Tensor) -> bool:
    return value.is_floating_point() and value.layout == torch.strided and not value.is_meta


def digest_weight(value: Tensor) -> dict[str, str]:
    """Return a digest of some values of a weight, by the precision that they are rounded to."""
    flat = value.detach().reshape(-1)
    sample = flat[:: max(flat.numel() // VALUES, 1)][:VALUES].contiguous().cpu()
    shape = repr(tuple(value.shape)).encode()
    precisions = {name: dtype for name, dtype in PRECISIONS.items() if dtype == value.dtype} or PRECISIONS
    return {
        name: hashlib.blake2b(shape + sample.to(dtype).view(torch.uint8).numpy().tobytes(), digest_size=8).hexdigest()
        for name, dtype in precisions.items()
    }
