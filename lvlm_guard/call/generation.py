"""The object that travels through every hook, and what it learns from phase to phase."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from lvlm_guard import anatomy
from lvlm_guard.arithmetic import fusion
from lvlm_guard.forward import PreparedDecode
from lvlm_guard.request.requests import Request
from lvlm_guard.strategy.branches import Branch
from lvlm_guard.strategy.generation import Generation, PromptStates


def create_generation(request: Request) -> Generation:
    """Return the object that travels through every hook of a call."""
    processor = request.processor
    pictures = request.pictures.pictures if request.pictures is not None else ()
    return Generation(
        inputs=dict(request.inputs),
        input_ids=request.input_ids,
        attention_mask=request.attention_mask,
        image_mask=request.image_mask,
        has_image=request.has_image,
        tokenizer=getattr(processor, "tokenizer", processor),
        image_token=anatomy.image_token_id(request.config),
        config=request.config,
        measure=fusion.ForwardStatistics,
        pictures=tuple(pictures) if len(pictures) == request.input_ids.shape[0] else None,
    )


def describe_request(gen: Generation, request: Request) -> None:
    """Let the hooks see an edited request."""
    edited = create_generation(request)
    for name in ("inputs", "input_ids", "attention_mask", "image_mask"):
        setattr(gen, name, getattr(edited, name))


def describe_main(gen: Generation, main: PreparedDecode, run_prompt: Callable[[Branch | None], PromptStates]) -> None:
    """Let the hooks see the model, and run prompts on it."""
    gen.rows_per_request = main.rows_per_request
    gen.depth, gen.heads = anatomy.depth_and_heads(main.module)
    gen.tied = anatomy.ties_embeddings(main.module)
    gen.prefix = run_prompt


def describe_output(gen: Generation, generated: Tensor, ask: Callable[[Sequence[str], int], list[str]] | None) -> None:
    """Let the hooks see the generated ids `[batch, tokens]`, and ask the model about the picture."""
    gen.output_ids, gen.ask = generated, ask
