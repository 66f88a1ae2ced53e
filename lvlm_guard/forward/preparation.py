"""A decode as generate prepares it, captured before its first forward."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import GenerationConfig

from lvlm_guard.cache_names import find_cache
from lvlm_guard.errors import ModelRefused
from lvlm_guard.protocols import Cache, Model

# Arguments that steer the loop, not the preparation; a capture must not trigger them.
LOOP_ONLY = frozenset(
    {
        "streamer", "assistant_model", "tokenizer", "assistant_tokenizer", "logits_processor", "stopping_criteria",
        "prefix_allowed_tokens_fn", "synced_gpus", "negative_prompt_ids", "negative_prompt_attention_mask",
        "stop_strings", "prompt_lookup_num_tokens", "assistant_early_exit", "guidance_scale", "watermarking_config",
        "output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate",
    }
)  # fmt: skip
STATIC_LENGTH = "_previous_max_cache_length"
"""Where generate notes, on the module that decodes, how long its last static cache was."""
_capturing: ContextVar[bool] = ContextVar("lvlm_guard_capturing", default=False)


@dataclass(eq=False)
class PreparedDecode:
    """A decode as generate hands it to its loop: rows expanded, images encoded, cache made, nothing run.

    Args:
        module: The module that really decodes; an inner one for some architectures.
        input_ids: Prompt `[rows, length]`.
        kwargs: Everything the loop carries from step to step, the empty cache included.
        settings: The resolved generation config.
    """

    module: Model
    input_ids: Tensor
    kwargs: dict[str, Any]
    settings: GenerationConfig

    @property
    def length(self) -> int:
        """Length of the prompt in positions."""
        embeds = self.kwargs.get("inputs_embeds")
        return int(self.input_ids.shape[1] if embeds is None else embeds.shape[1])

    @property
    def prompt_mask(self) -> Tensor | None:
        """Attention mask of the prompt `[rows, length]`, or None when all of it is attended to."""
        mask = self.kwargs.get("attention_mask")
        return mask if isinstance(mask, Tensor) else None

    @property
    def rows_per_request(self) -> int:
        """Rows per request: beams or returned sequences."""
        return max(self.settings.num_beams or 1, self.settings.num_return_sequences or 1)

    @property
    def cache(self) -> Cache | None:
        """The cache of this decode, or None."""
        cache: Cache | None = find_cache(self.kwargs)
        return cache


def capture_decode(
    generate: Callable[..., Any],
    inputs: Mapping[str, Any],
    settings: Mapping[str, Any],
    use: Callable[[PreparedDecode], None] | None = None,
) -> PreparedDecode:
    """Let generate prepare a decode and stop before its first forward, through its public `custom_generate` argument.

    Args:
        generate: The model's own generate.
        inputs: Model inputs.
        settings: Settings of the loop.
        use: Called with the decode while generate still runs: wrappers such as PEFT's put on the model what a forward needs for
            as long as their generate runs.

    Raises:
        ModelRefused: The model never reached a decode loop.
    """
    captured: list[PreparedDecode] = []

    def stop_before_first_forward(model: Any, input_ids: Tensor, **kwargs: Any) -> Tensor:
        for name in ("logits_processor", "stopping_criteria"):
            kwargs.pop(name, None)
        config = kwargs.pop("generation_config")
        static = vars(model).get("_cache")
        if static is not None and static is find_cache(kwargs):
            del model._cache  # noqa: SLF001 - older versions would hand this static cache to the branches too
        captured.append(PreparedDecode(model, input_ids, kwargs, config))
        if use is not None:
            use(captured[0])
        return input_ids

    preparing = {name: value for name, value in settings.items() if name not in LOOP_ONLY}
    if (config := preparing.get("generation_config")) is not None:
        preparing["generation_config"] = _drop_loop_settings(config)
    with _silenced():
        generate(**inputs, **preparing, custom_generate=stop_before_first_forward)
    if not captured:
        raise ModelRefused("The model's generate did not reach a decode loop, so there is nothing to guard.")
    return captured[0]


def prepare_cache(generate: Callable[..., Any], inputs: Mapping[str, Any], settings: Mapping[str, Any]) -> Cache | None:
    """Return an empty cache that generate makes where it is asked to, and would leave to the model; None where it makes none."""
    return capture_decode(generate, inputs, {**settings, "cache_implementation": "dynamic_full"}).cache


@contextmanager
def static_length_kept(module: Any) -> Iterator[None]:
    """Keep how long a module remembers its static caches to be: main's are not to grow with those of its branches."""
    before = vars(module).get(STATIC_LENGTH)
    try:
        yield
    finally:
        if before is None:
            vars(module).pop(STATIC_LENGTH, None)
        else:
            setattr(module, STATIC_LENGTH, before)


@contextmanager
def _silenced() -> Iterator[None]:
    """Suppress what generate logs about its arguments: it will log the same in the real call."""
    logger = logging.getLogger("transformers.generation.utils")
    token = _capturing.set(True)
    logger.addFilter(_is_not_capturing)
    try:
        yield
    finally:
        logger.removeFilter(_is_not_capturing)
        _capturing.reset(token)


def _is_not_capturing(_: logging.LogRecord) -> bool:
    return not _capturing.get()


def _drop_loop_settings(config: GenerationConfig) -> GenerationConfig:
    config = copy.deepcopy(config)
    for name in LOOP_ONLY & set(vars(config)):
        setattr(config, name, None)
    return config
