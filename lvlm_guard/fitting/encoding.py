"""Model inputs of demonstrations: prompts, answers behind them, and pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Generator, Tensor

from lvlm_guard import anatomy
from lvlm_guard.errors import InputError
from lvlm_guard.request import conversation, images
from lvlm_guard.strategy.fitters import Demonstration


def check_chat_template(processor: Any) -> None:
    """Raise `InputError` where a processor has no chat template, so that the model cannot be asked anything."""
    if not getattr(processor, "chat_template", None):
        raise InputError(f"{type(processor).__name__} has no chat template, so the model cannot be asked anything.")


def encode_answer(model: Any, processor: Any, demonstration: Demonstration, answer: str) -> tuple[Any, int]:
    """Return model inputs `[1, length]` of prompt and answer, and how many of the last positions are the answer's.

    Raises:
        InputError: The picture cannot be read, or the answer is empty.
    """
    prompt_batch = encode_prompts(model, processor, [demonstration])
    prompt = _prompt(processor, demonstration)
    space = "" if prompt[-1:].isspace() else " "
    batch = _inputs(model, processor, [demonstration], [f"{prompt}{space}{answer}"])
    ids, prompt_ids = batch["input_ids"][0], prompt_batch["input_ids"][0]
    shorter = min(len(ids), len(prompt_ids))
    shared = int((ids[:shorter] == prompt_ids[:shorter]).long().cumprod(0).sum())
    if shared == len(ids):
        raise InputError(f"The answer {answer!r} has no token of its own.")
    return batch, len(ids) - shared


def encode_prompts(model: Any, processor: Any, demonstrations: Sequence[Demonstration]) -> Any:
    """Return model inputs of the prompts alone, a row for each demonstration."""
    prompts = [_prompt(processor, demonstration) for demonstration in demonstrations]
    return _inputs(model, processor, demonstrations, prompts)


def edit_pictures(
    model: Any, batch: Mapping[str, Any], edit: Callable[[Tensor, Generator], Tensor], seed: int
) -> dict[str, Any]:
    """Return a batch whose pictures are edited; everything else in it is the same.

    Args:
        model: The model that the batch is for.
        batch: Model inputs.
        edit: Function of one picture and its generator, which is seeded by `seed` and the content of the picture. The
            picture is a tile `[channels, height, width]`, or patches `[patches, channels, frames, pixels]` where the
            model takes flattened ones; the result has the same shape.
        seed: Seed of the generators.

    Raises:
        StrategyRefused: The layout of the pictures is unknown.
    """
    grid = batch.get(anatomy.PACKED_GRID)
    return {
        name: images.edit_pixels(name, value, grid, model.config, edit, seed)
        if anatomy.is_pixels(name, value)
        else value
        for name, value in batch.items()
    }


def _prompt(processor: Any, demonstration: Demonstration) -> str:
    content = [{"type": "image"}, {"type": "text", "text": demonstration.prompt}]
    message = {"role": "user", "content": content}
    return str(processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False))


def _inputs(model: Any, processor: Any, demonstrations: Sequence[Demonstration], texts: list[str]) -> Any:
    pictures = [demonstration.picture for demonstration in demonstrations]
    return conversation.prepare_inputs(model, processor, None, pictures, texts, None, {})
