"""How generate prepares, feeds and extends a decode, on every supported version of transformers."""

from __future__ import annotations

import copy
import functools
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig
from transformers.generation import GenerationMixin
from transformers.utils import ModelOutput

from lvlm_guard.errors import ModelRefused

# Arguments that steer the loop, not the preparation; a capture must not trigger them.
LOOP_ONLY = frozenset(
    {
        "streamer", "assistant_model", "tokenizer", "assistant_tokenizer", "logits_processor", "stopping_criteria",
        "prefix_allowed_tokens_fn", "synced_gpus", "negative_prompt_ids", "negative_prompt_attention_mask",
        "stop_strings", "prompt_lookup_num_tokens", "assistant_early_exit", "guidance_scale", "watermarking_config",
        "output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate",
    }
)  # fmt: skip
_capturing: ContextVar[bool] = ContextVar("lvlm_guard_capturing", default=False)
ALIGNED_LAST = ("attention_mask", "position_ids", "token_type_ids", "mm_token_type_ids", "moe_mm_token_type_ids")


@dataclass(eq=False)
class Prepared:
    """A decode as generate hands it to its loop: rows expanded, images encoded, cache made, nothing run.

    Args:
        module: The module that really decodes; an inner one for some architectures.
        input_ids: Prompt `[rows, length]`.
        kwargs: Everything the loop carries from step to step, the empty cache included.
        settings: The resolved generation config.
    """

    module: nn.Module
    input_ids: Tensor
    kwargs: dict[str, Any]
    settings: GenerationConfig

    @property
    def length(self) -> int:
        """Length of the prompt in positions."""
        embeds = self.kwargs.get("inputs_embeds")
        return int(self.input_ids.shape[1] if embeds is None else embeds.shape[1])

    @property
    def rows_per_request(self) -> int:
        """Rows per request: beams or returned sequences."""
        return max(self.settings.num_beams or 1, self.settings.num_return_sequences or 1)

    @property
    def cache(self) -> Any:
        """The cache of this decode, or None."""
        return self.kwargs.get("past_key_values")


def capture(generate: Callable[..., Any], inputs: Mapping[str, Any], settings: Mapping[str, Any]) -> Prepared:
    """Let generate prepare a decode and stop before its first forward, through its public `custom_generate` door.

    Raises:
        ModelRefused: The model never reached a decode loop.
    """
    found: list[Prepared] = []

    def grab(model: Any, input_ids: Tensor, **kwargs: Any) -> Tensor:
        for name in ("logits_processor", "stopping_criteria"):
            kwargs.pop(name, None)
        resolved = kwargs.pop("generation_config")
        if (kept := vars(model).get("_cache")) is not None and kept is kwargs.get("past_key_values"):
            del model._cache  # noqa: SLF001 - older versions would hand this static cache to the branches too
        found.append(Prepared(model, input_ids, kwargs, resolved))
        return input_ids

    quiet = {name: value for name, value in settings.items() if name not in LOOP_ONLY}
    if (given := quiet.get("generation_config")) is not None:
        quiet["generation_config"] = _without_loop(given)
    with _unlogged():
        generate(**inputs, **quiet, custom_generate=grab)
    if not found:
        raise ModelRefused("The model's generate did not reach a decode loop, so there is nothing to guard.")
    return found[0]


@contextmanager
def _unlogged() -> Iterator[None]:
    """What generate logs about its arguments it will log again in the real call; once is enough."""
    logger = logging.getLogger("transformers.generation.utils")
    token = _capturing.set(True)
    logger.addFilter(_outside_captures)
    try:
        yield
    finally:
        logger.removeFilter(_outside_captures)
        _capturing.reset(token)


def _outside_captures(_: logging.LogRecord) -> bool:
    return not _capturing.get()


def _without_loop(config: GenerationConfig) -> GenerationConfig:
    config = copy.deepcopy(config)
    for name in LOOP_ONLY & set(vars(config)):
        setattr(config, name, None)
    return config


def takes_encoded_images(module: nn.Module) -> bool:
    """Whether generate accepts images that are already encoded (`mm_encoder_outputs`)."""
    return "mm_encoder_outputs" in forward_parameters(module)


def ids_name(module: nn.Module) -> str:
    """Name under which the forward receives token ids."""
    return "decoder_input_ids" if module.config.is_encoder_decoder else "input_ids"  # type: ignore[union-attr]


def forward_inputs(module: Any, ids: Tensor, kwargs: Mapping[str, Any], *, past: int, first: bool) -> dict[str, Any]:
    """Arguments of the forward that feeds `ids[:, past:]`, made by the model's own preparation.

    Args:
        module: The module that decodes.
        ids: All token ids of the branch so far `[rows, length]`.
        kwargs: What the loop carries, already extended to `length`.
        past: Positions already in the cache; 0 without a cache.
        first: Whether this is the prefill.
    """
    kwargs = dict(kwargs)
    options: dict[str, Any] = {}
    names = _preparation_parameters()
    cached = bool(kwargs.get("use_cache", True))
    if "next_sequence_length" in names:
        options["next_sequence_length"] = None if first or not cached else ids.shape[1] - past
    if "is_first_iteration" in names:
        options["is_first_iteration"] = first
    if _positions_in_cache(module):
        length = _total(ids, kwargs, first=first)
        kwargs["cache_position"] = torch.arange(past if cached else 0, length, device=ids.device)
    return dict(module.prepare_inputs_for_generation(ids, **options, **kwargs))


def _total(ids: Tensor, kwargs: Mapping[str, Any], *, first: bool) -> int:
    embeds = kwargs.get("inputs_embeds")
    return int(embeds.shape[1] if first and embeds is not None else ids.shape[1])


def extended(module: Any, kwargs: Mapping[str, Any], tokens: int) -> dict[str, Any]:
    """Carry `kwargs` over `tokens` generated tokens with the model's own bookkeeping (masks, positions, types)."""
    carried = dict(kwargs)
    if _positions_in_cache(module):
        carried.setdefault("cache_position", torch.zeros(1, dtype=torch.long, device=module.device))
    for _ in range(tokens):
        carried = module._update_model_kwargs_for_generation(  # noqa: SLF001 - models override it; nothing public does
            ModelOutput(), carried, is_encoder_decoder=module.config.is_encoder_decoder
        )
    return carried


def shortened(kwargs: Mapping[str, Any], tokens: int) -> dict[str, Any]:
    """Take `tokens` generated tokens back out of what the loop carries."""
    cut = {name: kwargs[name][..., :-tokens] for name in ALIGNED_LAST if isinstance(kwargs.get(name), Tensor)}
    if isinstance(cross := kwargs.get("cross_attention_mask"), Tensor):
        cut["cross_attention_mask"] = cross[:, :-tokens]
    return {**kwargs, **cut}


def repeated(prepared: Prepared, times: int) -> Prepared:
    """A decode with every row repeated, by the model's own means; the cache is left as it is."""
    expand = prepared.module._expand_inputs_for_generation  # noqa: SLF001 - models override it; nothing public does
    across = bool(prepared.module.config.is_encoder_decoder)  # type: ignore[union-attr]
    ids, kwargs = expand(expand_size=times, is_encoder_decoder=across, input_ids=prepared.input_ids, **prepared.kwargs)  # type: ignore[operator]
    return Prepared(prepared.module, ids, kwargs, prepared.settings)


def next_position(
    inputs: Mapping[str, Any], rows: int, length: int, mask: Tensor | None, device: torch.device
) -> Tensor:
    """Position ids that follow a prefill: `[rows, 1]`, or `[axes, rows, 1]` with several rotary axes."""
    given = inputs.get("position_ids")
    if isinstance(given, Tensor):
        following = given[..., length - 1 : length] + 1
        return following.expand(*following.shape[:-2], rows, 1)
    if mask is not None:
        return mask.long().sum(-1, keepdim=True)
    return torch.full((rows, 1), length, device=device)


def forward_parameters(module: nn.Module) -> tuple[str, ...]:
    """Names of the parameters of the module's forward."""
    return tuple(inspect.signature(module.forward).parameters)


@functools.cache
def _preparation_parameters() -> frozenset[str]:
    return frozenset(inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters)


def _positions_in_cache(module: Any) -> bool:
    """Before 5.1 or so, generate carried `cache_position` from step to step."""
    return hasattr(module, "_get_initial_cache_position")
