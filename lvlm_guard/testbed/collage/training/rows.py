"""Many questions about one picture in one row: each sees the picture and itself, and is answered as if it were asked alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lvlm_guard.testbed.collage.language_model import IMAGE

IGNORED = -100
PADDING = -1
"""The block of a column that holds nothing."""


@dataclass(frozen=True)
class PackedTurn:
    """One prompt and its answer; `weight` is what each token of the answer counts in the loss."""

    prompt: str
    answer: str
    weight: float = 1.0


@dataclass(frozen=True)
class PackedBlock:
    """A turn as token ids: what is fed, and what should come out after each, or `IGNORED`."""

    ids: list[int]
    targets: list[int]
    weight: float


@dataclass(frozen=True)
class PackedRows:
    """A batch of rows, each of shape (rows, columns).

    Args:
        ids: Token ids.
        positions: They go on from the picture in every block.
        blocks: 0 for what all see, the number of the block else, `PADDING` where there is nothing.
        targets: The next token where it is learnt, else `IGNORED`.
        weights: What a target counts.
        image: Whether a column is an image token.
    """

    ids: Tensor
    positions: Tensor
    blocks: Tensor
    targets: Tensor
    weights: Tensor
    image: Tensor

    def visible(self) -> Tensor:
        """Return which keys a query sees: bool, shape (rows, 1, columns, columns); padding sees itself alone."""
        query, key = self.blocks[:, :, None], self.blocks[:, None, :]
        columns = torch.arange(self.ids.shape[1])
        shared = (key == 0) | (key == query)
        causal = columns[:, None] >= columns[None, :]
        return ((shared & causal & (key != PADDING)) | torch.eye(len(columns), dtype=torch.bool))[:, None]


class Packer:
    """Lays rows out in the words of a processor.

    Args:
        processor: Tokenizer and chat template of the model.
        tokens: Image tokens of a picture.
    """

    def __init__(self, processor: Any, tokens: int) -> None:
        self._tokenizer = processor.tokenizer
        template = self._write(processor, [{"type": "image"}, {"type": "text", "text": "QUESTION"}])
        head, tail = template.split(IMAGE)
        self._after, self._opening = tail.split("QUESTION")
        self._image = self._ids(head) + [processor.image_token_id] * tokens
        self._blind = self._ids(head)
        self._token = processor.image_token_id

    def pack(self, turns: Sequence[Sequence[PackedTurn]], *, blind: bool = False) -> PackedRows:
        """Lay out one row of turns for each picture; `blind` leaves the picture out."""
        prefix = self._blind if blind else self._image
        rows = [[self.block(turn, blind=blind) for turn in row] for row in turns]
        width = max(len(prefix) + sum(len(block.ids) for block in row) for row in rows)
        ids = torch.full((len(rows), width), self._tokenizer.pad_token_id)
        laid = PackedRows(
            ids,
            torch.zeros_like(ids),
            torch.full_like(ids, PADDING),
            torch.full_like(ids, IGNORED),
            torch.zeros(ids.shape),
            torch.zeros(ids.shape, dtype=torch.bool),
        )
        for at, row in enumerate(rows):
            _lay(laid, at, prefix, row)
        laid.image.copy_(laid.ids == self._token)
        return laid

    def block(self, turn: PackedTurn, *, blind: bool = False) -> PackedBlock:
        """Return a turn as token ids; without a picture its text begins at once."""
        after = self._after.removeprefix("\n") if blind else self._after
        prompt = self._ids(after + turn.prompt + self._opening)
        answer = [*self._ids(turn.answer), self._tokenizer.eos_token_id]
        return PackedBlock(prompt + answer[:-1], [IGNORED] * (len(prompt) - 1) + answer, turn.weight)

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    @staticmethod
    def _write(processor: Any, content: list[dict[str, str]]) -> str:
        messages = [{"role": "user", "content": content}]
        return str(processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def _lay(rows: PackedRows, at: int, prefix: list[int], blocks: Sequence[PackedBlock]) -> None:
    start = len(prefix)
    rows.ids[at, :start] = torch.tensor(prefix)
    rows.positions[at, :start] = torch.arange(start)
    rows.blocks[at, :start] = 0
    for number, block in enumerate(blocks, 1):
        span = slice(start, start + len(block.ids))
        rows.ids[at, span] = torch.tensor(block.ids)
        rows.positions[at, span] = len(prefix) + torch.arange(len(block.ids))
        rows.blocks[at, span] = number
        rows.targets[at, span] = torch.tensor(block.targets)
        rows.weights[at, span] = block.weight
        start = span.stop
