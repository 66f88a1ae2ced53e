"""Arguments of the forwards of a decode, made by the model's own code on every supported version of transformers."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.generation import GenerationMixin
from transformers.utils import ModelOutput

from lvlm_guard.cache_names import CACHE_NAMES
from lvlm_guard.forward.preparation import PreparedDecode
from lvlm_guard.protocols import Model

TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids", "moe_mm_token_type_ids")
ALIGNED_LAST = ("attention_mask", "position_ids", *TOKEN_TYPES)


def takes_encoded_images(module: Model) -> bool:
    """Whether generate accepts images that are already encoded (`mm_encoder_outputs`)."""
    return "mm_encoder_outputs" in list_parameters(module)


def name_of_ids(module: Model) -> str:
    """Name under which the forward receives token ids."""
    return "decoder_input_ids" if module.config.is_encoder_decoder else "input_ids"


def prepare_forward(
    module: Model, ids: Tensor, kwargs: Mapping[str, Any], *, past: int, new: int, first: bool
) -> dict[str, Any]:
    """Arguments of the forward that feeds the last `new` ids, made by the model's own preparation.

    Args:
        module: The module that decodes.
        ids: All token ids of the branch so far `[rows, length]`.
        kwargs: What the loop carries, already extended to `length`.
        past: Positions already in the cache, which may hold an image beside the ids; 0 without a cache. In a prefill, those of
            a prefix that was run before.
        new: Ids to feed, where a cache holds the others.
        first: Whether this is the prefill.
    """
    kwargs = dict(kwargs)
    options: dict[str, Any] = {}
    names = _preparation_parameters()
    cached = bool(kwargs.get("use_cache", True))
    if "next_sequence_length" in names:
        options["next_sequence_length"] = _count_next(ids, past, new, first=first) if cached else None
    if "is_first_iteration" in names:
        options["is_first_iteration"] = first
    if _carries_cache_position(module):
        length = past + new if cached and not first else _count_positions(ids, kwargs, first=first)
        kwargs["cache_position"] = torch.arange(past if cached else 0, length, device=ids.device)
    return dict(module.prepare_inputs_for_generation(ids, **options, **kwargs))


def _count_next(ids: Tensor, past: int, new: int, *, first: bool) -> int | None:
    """How many of the last ids a forward with a cache feeds; None is all of them."""
    if not first:
        return new
    return ids.shape[1] - past if past else None


def expand_mask(module: Model, inputs: Mapping[str, Any], *, past: int) -> Any:
    """The attention mask that the model's own preparation makes for a static cache: as large as the cache, or one per kind of layer.

    Args:
        module: The module that decodes.
        inputs: Arguments of its forward, with a mask `[rows, positions]` of what was run and is fed, or None.
        past: Positions already in the cache.
    """
    ids = inputs["input_ids"]
    names = (*CACHE_NAMES, "position_ids", "attention_mask", "use_cache", *TOKEN_TYPES)
    kwargs = {name: inputs[name] for name in names if inputs.get(name) is not None}
    return prepare_forward(module, ids, kwargs, past=past, new=ids.shape[1], first=False).get("attention_mask")


def _count_positions(ids: Tensor, kwargs: Mapping[str, Any], *, first: bool) -> int:
    embeds = kwargs.get("inputs_embeds")
    return int(embeds.shape[1] if first and embeds is not None else ids.shape[1])


def extend_kwargs(module: Model, kwargs: Mapping[str, Any], tokens: int, output: Any) -> dict[str, Any]:
    """Carry `kwargs` over `tokens` generated tokens with the model's own bookkeeping: masks, positions, types, encoded images.

    Args:
        module: The module that decodes.
        kwargs: What the loop carries.
        tokens: How many tokens further.
        output: What the last forward returned, for models that carry more of it than the cache; None before the first.
    """
    output = ModelOutput() if output is None else output
    carried = dict(kwargs)
    if _carries_cache_position(module):
        carried.setdefault("cache_position", torch.zeros(1, dtype=torch.long, device=module.device))
    for _ in range(tokens):
        carried = module._update_model_kwargs_for_generation(  # noqa: SLF001 - models override it; nothing public does
            output, carried, is_encoder_decoder=module.config.is_encoder_decoder
        )
    return carried


def shorten_kwargs(kwargs: Mapping[str, Any], tokens: int) -> dict[str, Any]:
    """Take `tokens` generated tokens back out of what the loop carries."""
    cut = {name: kwargs[name][..., :-tokens] for name in ALIGNED_LAST if isinstance(kwargs.get(name), Tensor)}
    if isinstance(cross := kwargs.get("cross_attention_mask"), Tensor):
        cut["cross_attention_mask"] = cross[:, :-tokens]
    return {**kwargs, **cut}


def repeat_rows(prepared: PreparedDecode, times: int) -> PreparedDecode:
    """A decode with every row repeated, by the model's own means; the cache is left as it is."""
    expand = prepared.module._expand_inputs_for_generation  # noqa: SLF001 - models override it; nothing public does
    across = bool(prepared.module.config.is_encoder_decoder)
    ids, kwargs = expand(expand_size=times, is_encoder_decoder=across, input_ids=prepared.input_ids, **prepared.kwargs)
    return PreparedDecode(prepared.module, ids, kwargs, prepared.settings)


def list_parameters(module: Model) -> tuple[str, ...]:
    """Names of the parameters of the module's forward."""
    return tuple(inspect.signature(module.forward).parameters)


@functools.cache
def _preparation_parameters() -> frozenset[str]:
    return frozenset(inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters)


def _carries_cache_position(module: Model) -> bool:
    """Before 5.1 or so, generate carried `cache_position` from step to step."""
    return hasattr(module, "_get_initial_cache_position")
