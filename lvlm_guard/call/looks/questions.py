"""Model inputs of questions on a look, made of words alone: what stands before them was processed when the look was opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lvlm_guard import anatomy
from lvlm_guard.call.looks.parts import repeat_inputs
from lvlm_guard.call.looks.rows import ALIGNED
from lvlm_guard.errors import InputError
from lvlm_guard.request.messages import Conversation


@dataclass(frozen=True, eq=False)
class QuestionWriter:
    """Writes prompts whose pictures were processed before.

    Args:
        processor: The processor: its template and its tokenizer.
        inputs: Model inputs of one processed prompt `[1, length]`.
        head: How many tokens of it stand before the words behind the last picture.
        places: How often the template writes a picture's place.
    """

    processor: Any
    inputs: Mapping[str, Any]
    head: int
    places: int

    def write(self, conversations: Sequence[Conversation]) -> dict[str, Any]:
        """Return the model inputs of conversations, padded on the left.

        Raises:
            InputError: A message holds a picture's place as text.
        """
        tails = [_tokenize(self.processor, self._cut(each)) for each in conversations]
        longest = max(map(len, tails))
        inputs = repeat_inputs(self.inputs, len(tails))
        padding = getattr(getattr(self.processor, "tokenizer", None), "pad_token_id", None) or 0
        for name in ALIGNED:
            if isinstance(self.inputs.get(name), Tensor):
                inputs[name] = torch.stack([self._write_row(name, tail, longest, padding) for tail in tails])
        return inputs

    def _cut(self, conversation: Conversation) -> str:
        tail, places = _cut_text(self.processor, conversation)
        if places != self.places:
            raise InputError(
                "A question holds an image token, but a look has its pictures from the start: open another look."
            )
        return tail

    def _write_row(self, name: str, tail: Sequence[int], longest: int, padding: int) -> Tensor:
        values = self.inputs[name][0]
        head, room = values[: self.head], longest - len(tail)
        front = head.new_full((room, *head.shape[1:]), padding if name == "input_ids" else 0)
        if name == "input_ids":
            words = torch.tensor(tail, dtype=head.dtype, device=head.device)
        else:
            words = values[-1:].expand(len(tail), *values.shape[1:])
        return torch.cat([front, head, words])


def create_writer(
    processor: Any, inputs: Mapping[str, Any], conversation: Conversation, question: str, config: Any
) -> QuestionWriter | None:
    """Return a writer if words behind the last picture are tokenized alike with and without it; else None.

    Args:
        processor: The processor.
        inputs: What it made of the conversation `[1, length]`.
        conversation: Messages that end with the question.
        question: The question.
        config: The model's config, which names the image placeholder.
    """
    tail, places = _cut_text(processor, conversation)
    ids = inputs["input_ids"][0].tolist()
    if not places or len(ids) != int(inputs["attention_mask"].sum()) or not _is_known(inputs):
        return None
    words = _tokenize(processor, tail)
    if tail.startswith(question) or not words or ids[-len(words) :] != words or anatomy.image_token_id(config) in words:
        return None  # what the template writes in between keeps the words from the picture
    return QuestionWriter(processor, inputs, len(ids) - len(words), places)


def _is_known(inputs: Mapping[str, Any]) -> bool:
    """Whether every input with an entry for each token is known to be one."""
    shape = inputs["input_ids"].shape
    aligned = {name for name, value in inputs.items() if isinstance(value, Tensor) and value.shape[:2] == shape}
    return aligned <= set(ALIGNED)


def _cut_text(processor: Any, conversation: Conversation) -> tuple[str, int]:
    """Return what a template writes behind the last place of a picture, and how many there are."""
    token = getattr(processor, "image_token", None)
    text = str(processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False))
    if not isinstance(token, str) or not token:
        return text, 0
    return text.rpartition(token)[2], text.count(token)


def _tokenize(processor: Any, text: str) -> list[int]:
    tokenizer = getattr(processor, "tokenizer", processor)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
