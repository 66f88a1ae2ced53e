"""The object that travels through every hook, and what it learns from phase to phase."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

from torch import Tensor

from lvlm_guard import anatomy
from lvlm_guard.arithmetic import fusion
from lvlm_guard.forward import PreparedDecode
from lvlm_guard.request.requests import Request
from lvlm_guard.strategy.branches import Branch
from lvlm_guard.strategy.fingerprints import digest_weights
from lvlm_guard.strategy.generation import Generation, Services
from lvlm_guard.strategy.prompt import ModelInfo, Prompt, PromptStates


def create_generation(request: Request) -> Generation:
    """Return the object that travels through every hook of a call."""
    tokenizer = getattr(request.processor, "tokenizer", request.processor)
    services = Services(measure=fusion.ForwardStatistics)
    return Generation(_read_prompt(request), ModelInfo(request.config, tokenizer), services=services)


def describe_request(gen: Generation, request: Request) -> None:
    """Let the hooks see an edited request."""
    gen.prompt = _read_prompt(request)


def describe_main(gen: Generation, main: PreparedDecode, run_prompt: Callable[[Branch | None], PromptStates]) -> None:
    """Let the hooks see the model, and run prompts on it."""
    depth, heads = anatomy.depth_and_heads(main.module)
    tied = anatomy.ties_embeddings(main.module)
    gen.multiply_rows(main.rows_per_request)
    gen.model = dataclasses.replace(
        gen.model,
        depth=depth,
        heads=heads,
        tied_embeddings=tied,
        digest_weights=functools.partial(digest_weights, main.module),
    )
    gen.services.run_prompt = run_prompt


def describe_output(gen: Generation, generated: Tensor, ask: Callable[[Sequence[str], int], list[str]] | None) -> None:
    """Let the hooks see the generated ids `[batch, tokens]`, and ask the model about the picture."""
    gen.output_ids, gen.services.ask = generated, ask


def _read_prompt(request: Request) -> Prompt:
    pictures = request.pictures.pictures if request.pictures is not None else ()
    return Prompt(
        inputs=dict(request.inputs),
        ids=request.input_ids,
        attention_mask=request.attention_mask,
        image_mask=request.image_mask,
        has_image=request.has_image,
        image_token=anatomy.image_token_id(request.config),
        pictures=tuple(pictures) if len(pictures) == request.input_ids.shape[0] else None,
    )
