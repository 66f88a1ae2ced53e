"""The logit lens at image positions: how likely the model's own head finds a word at each of them, layer by layer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from lvlm_guard import anatomy
from lvlm_guard.diagnosis.answer.forcing import AnswerRequest, force
from lvlm_guard.errors import InputError
from lvlm_guard.strategy.edits import HiddenEdit, View
from lvlm_guard.strategy.generation import Generation
from lvlm_guard.strategy.hookspecs import hookimpl

AT_ONCE = 256
"""Positions that are read out at once: the vocabulary may be large."""


@dataclass(frozen=True, eq=False)
class LensReader:
    """Read words out of the hidden states of image tokens; nothing is changed.

    Args:
        head: From hidden states to logits.
        norm: The norm in front of it, or None.
        tokens: First tokens of the words.
        layers: Receives probabilities `[image tokens, words]` by layer output; 0 is what enters the decoder.
    """

    name: ClassVar[str] = "lens_reader"

    head: Any
    norm: Any
    tokens: tuple[int, ...]
    layers: Any = field(default_factory=dict)

    @hookimpl
    def hidden(self, gen: Generation) -> Iterable[HiddenEdit]:  # noqa: ARG002 - the hook's signature
        """Look at what enters the decoder, and at the output of each layer."""
        yield HiddenEdit("embedding", self._read_embedding, positions="image", when="prefill", observes=True)
        yield HiddenEdit("residual", self._read_layer, positions="image", when="prefill", observes=True)

    def _read_embedding(self, hidden: Tensor, view: View) -> Tensor:
        self.layers[0] = self._read(hidden, view)
        return hidden

    def _read_layer(self, hidden: Tensor, view: View) -> Tensor:
        self.layers[view.layer + 1] = self._read(hidden, view)
        return hidden

    def _read(self, hidden: Tensor, view: View) -> Tensor:
        states = hidden[0][view.image[0]]
        chunks = [self._read_out(states[start : start + AT_ONCE]) for start in range(0, len(states), AT_ONCE)]
        return torch.cat(chunks) if chunks else torch.zeros(0, len(self.tokens))

    def _read_out(self, states: Tensor) -> Tensor:
        normed = states if self.norm is None else self.norm(states)
        weight = next(self.head.parameters(), None)  # a quantised head may hold none, or one of whole numbers
        if weight is not None:
            normed = normed.to(weight.device, weight.dtype if weight.is_floating_point() else normed.dtype)
        logits = self.head(normed).float()
        return logits.softmax(-1)[:, list(self.tokens)].cpu()


def read_lens(request: AnswerRequest, ids: Sequence[int], tokens: Sequence[int]) -> list[Tensor]:
    """Return probabilities of words `[image tokens, words]` at every layer output, from what enters the decoder on, fp32.

    Args:
        request: What was asked.
        ids: The tokens of the answer; they come behind the picture, and do not matter.
        tokens: The first tokens of the words.

    Raises:
        InputError: The model shows no head, or no image tokens come to its decoder.
    """
    model = request.guard.model
    head = model.get_output_embeddings()
    if head is None:
        raise InputError(f"The logit lens needs a head, and {type(model).__name__} shows none.")
    reader = LensReader(head, anatomy.final_norm(model), tuple(tokens))
    force(request.guard.using([*request.split_stack()[0], reader]), request.inputs, ids[:1])
    layers = [reader.layers[number] for number in sorted(reader.layers)]
    if not layers or not len(layers[-1]):
        raise InputError("The logit lens needs image tokens in the decoder, and this model has none.")
    return layers
