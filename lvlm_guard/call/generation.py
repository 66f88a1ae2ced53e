"""The object that travels through every hook, and what it learns from phase to phase."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor

from lvlm_guard import anatomy
from lvlm_guard.arithmetic import fusion
from lvlm_guard.errors import InputError
from lvlm_guard.forward import PreparedDecode
from lvlm_guard.forward.endings import Endings
from lvlm_guard.request.requests import Request
from lvlm_guard.request.row_pictures import find_pictures_of_rows
from lvlm_guard.strategy.branches import Branch
from lvlm_guard.strategy.fingerprints import digest_image_side, digest_weights
from lvlm_guard.strategy.generation import Generation, Services
from lvlm_guard.strategy.prompt import ModelInfo, Prompt, PromptStates

_inside_call: ContextVar[bool] = ContextVar("lvlm_guard_inside_call", default=False)


@contextmanager
def inside_call() -> Iterator[None]:
    """Mark guarded calls that are made in this block as inner ones."""
    token = _inside_call.set(True)
    try:
        yield
    finally:
        _inside_call.reset(token)


def create_generation(request: Request) -> Generation:
    """Return the object that travels through every hook of a call."""
    tokenizer = getattr(request.processor, "tokenizer", request.processor)
    services = Services(measure=fusion.ForwardStatistics)
    model = ModelInfo(request.config, tokenizer)
    return Generation(_read_prompt(request), model, services=services, is_inner=_inside_call.get())


def describe_request(gen: Generation, request: Request) -> None:
    """Let the hooks see an edited request."""
    gen.prompt = _read_prompt(request)


def describe_main(
    gen: Generation, main: PreparedDecode, run_prompt: Callable[[Branch | None], PromptStates], model: Any
) -> None:
    """Let the hooks see the model, and run prompts on it; `model` is the whole of it, which may encode images elsewhere."""
    depth, heads = anatomy.depth_and_heads(main.module)
    tied = anatomy.ties_embeddings(main.module)
    gen.multiply_rows(main.rows_per_request)
    gen.model = dataclasses.replace(
        gen.model,
        depth=depth,
        heads=heads,
        tied_embeddings=tied,
        digest_weights=functools.partial(digest_weights, main.module),
        digest_image_side=functools.partial(digest_image_side, model),
    )
    gen.services.run_prompt = run_prompt


def build_endings(settings: Any, request: Request) -> Endings:
    """Return what tells which rows have ended under the resolved settings of generate.

    Raises:
        InputError: There are stop strings and no tokenizer.
    """
    tokenizer, stop_strings = request.settings.get("tokenizer"), request.setting("stop_strings")
    if stop_strings and tokenizer is None:
        raise InputError(
            "stop_strings are looked for in text, which needs the tokenizer: add tokenizer=processor.tokenizer."
        )
    has_criteria = bool(request.settings.get("stopping_criteria"))
    return Endings(settings, stop_strings, tokenizer, has_criteria=has_criteria)


def describe_endings(gen: Generation, main: PreparedDecode, request: Request) -> None:
    """Let the hooks see which rows have ended."""
    endings = build_endings(main.settings, request)

    def find_finished(generated: Tensor) -> Tensor:
        prompts = main.input_ids
        return endings.find_finished(
            prompts.repeat_interleave(generated.shape[0] // prompts.shape[0], dim=0), generated
        )

    gen.services.find_finished = find_finished


def describe_output(gen: Generation, generated: Tensor, ask: Callable[..., Any] | None) -> None:
    """Let the hooks see the generated ids `[batch, tokens]`, and ask the model about the picture."""
    gen.output_ids, gen.services.ask = generated, ask


def _read_prompt(request: Request) -> Prompt:
    pictures, reason = find_pictures_of_rows(request)
    return Prompt(
        inputs=dict(request.inputs),
        ids=request.input_ids,
        attention_mask=request.attention_mask,
        image_mask=request.image_mask,
        has_image=request.has_image,
        image_token=request.placeholder,
        pictures=pictures,
        pictures_missing=reason,
    )
