"""What a model makes of pictures and questions: image tokens, and logits of the first token of an answer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lvlm_guard import Generation, Guard, HiddenEdit, InputError, NoEffectWarning, View, hookimpl
from lvlm_guard.fitting import Track
from lvlm_guard_evidence.grids import find_pictures

BATCH = 32
"""Prompts of a call."""
LOOK = "Is there anything in the image?"
"""What is asked where only the image tokens matter; they come before it."""
ANSWER = {"max_new_tokens": 1, "do_sample": False, "num_beams": 1}


class _TokensKeptError(Exception):
    """Ends a forward once the image tokens are kept; the decoder is not needed."""


@dataclass(frozen=True)
class TokenRecorder:
    """Keep the image tokens of a call, or the logits of its first token; nothing is changed.

    Args:
        keep_tokens: Receives the image tokens of each request, and their places.
        keep_logits: Receives the logits of main `[rows, vocab]`, fp32.
        layer: Whose output the tokens are taken from; 0 is what enters the decoder.
    """

    name: ClassVar[str] = "evidence-recorder"

    keep_tokens: Callable[[Tensor, Tensor], None] | None = None
    keep_logits: Callable[[Tensor, Generation], None] | None = None
    layer: int = 0

    @hookimpl
    def hidden(self, gen: Generation) -> Iterable[HiddenEdit]:
        """Keep what enters the decoder at image positions, or what a layer makes of it."""
        if self.keep_tokens is not None and not self.layer:
            yield HiddenEdit("embedding", self._remember, positions="image", when="prefill", observes=True)
        elif self.keep_tokens is not None:
            yield HiddenEdit(
                "residual", self._remember, (self.layer - 1, self.layer), positions="image", when="prefill"
            )

    @hookimpl
    def observe(self, gen: Generation) -> None:
        """Keep the logits."""
        if self.keep_logits is not None and gen.step == 0:
            self.keep_logits(gen.logits()[:, 0].float(), gen)

    def _remember(self, hidden: Tensor, view: View) -> Tensor:
        assert self.keep_tokens is not None
        prompt, config = view.gen.prompt, view.gen.model.config
        pictures = find_pictures(prompt.inputs, config, prompt.image_mask.cpu())
        for row, row_pictures in enumerate(pictures):
            tokens = hidden[row][view.image[row]]
            if len(row_pictures) != 1:
                raise InputError(
                    f"'patch_evidence' needs one place for each picture in its prompt, and there are {len(row_pictures)}: use a processor "
                    "that writes one."
                )
            self.keep_tokens(tokens, row_pictures[0].places())
        raise _TokensKeptError


def write_prompt(picture: Any, question: str) -> list[dict[str, Any]]:
    """Return a conversation that asks one question about one picture."""
    content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
    return [{"role": "user", "content": content}]


def run_prompts(
    model: Any, processor: Any, prompts: Sequence[tuple[Any, str]], recorder: Any, track: Track, batch: int = BATCH
) -> Iterator[int]:
    """Run pictures and questions in batches, one token each, and yield the number of the first of each batch."""
    guard = Guard(model, processor, [recorder])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoEffectWarning)  # it only watches
        for start in track(range(0, len(prompts), batch)):
            conversations = [write_prompt(picture, question) for picture, question in prompts[start : start + batch]]
            yield start
            with suppress(_TokensKeptError):
                guard.generate(**guard.inputs(messages=conversations), **ANSWER)


def record_tokens(
    model: Any,
    processor: Any,
    pictures: Sequence[Any],
    track: Track = iter,
    batch: int = BATCH,
    *,
    layer: int = 0,
    basis: Tensor | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the image tokens of pictures `[tokens, hidden]`, fp32 on the CPU, and their places `[tokens, 2]`.

    Args:
        model: The model.
        processor: Its processor.
        pictures: The pictures.
        track: Shows progress.
        batch: Pictures of a call.
        layer: Whose output is taken; 0 is what enters the decoder.
        basis: Directions to which tokens are reduced `[hidden, directions]`.
    """
    tokens: list[Tensor] = []
    places: list[Tensor] = []

    def keep(of_picture: Tensor, where: Tensor) -> None:
        reduced = of_picture.float().cpu()
        tokens.append(reduced if basis is None else reduced @ basis)
        places.append(where)

    prompts = [(picture, LOOK) for picture in pictures]
    for _ in run_prompts(model, processor, prompts, TokenRecorder(keep_tokens=keep, layer=layer), track, batch):
        pass
    if any(not bool(each.isfinite().all()) for each in tokens):
        raise InputError(
            "'patch_evidence' needs image tokens without NaN and infinite values: load the model in another precision."
        )
    return tokens, places


def record_logits(
    model: Any,
    processor: Any,
    prompts: Sequence[tuple[Any, str]],
    options: Sequence[Sequence[Sequence[int]]],
    track: Track = iter,
    batch: int = BATCH,
) -> list[Tensor]:
    """Return how likely each answer of a question begins: log-sum-exp of the logits of its first tokens `[answers]`, fp32."""
    margins: list[Tensor] = []

    def keep(logits: Tensor, _: Generation) -> None:
        for row in logits:
            of_question = options[len(margins)]
            margins.append(torch.stack([row[list(ids)].logsumexp(-1) for ids in of_question]).cpu())

    for _ in run_prompts(model, processor, prompts, TokenRecorder(keep_logits=keep), track, batch):
        pass
    return margins
