"""Many questions about one picture in one row: they share the image and do not see each other.

A row is a prefix (start, system words, the picture with its fences), one slot for a caption, and slots for questions. Every token
attends to the prefix and to its own slot, and positions in a slot go on from the prefix, so each answer is scored as if
its question had been asked alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AttentionInterface

from lvlm_guard.testbed.architectures.picture import IMAGE_TOKENS, Span
from lvlm_guard.testbed.world.language import ASSISTANT, END, IMAGE, PAD, START, USER, vocabulary

HIDDEN = -1e4
"""Added to the score of a key that must not be seen; finite, because padding queries see no key at all."""

IGNORED = -100
PACKED = "testbed_packed"
"""The name `packed_attention` goes by in transformers."""

IDS: dict[str, int] = {word: number for number, word in enumerate(vocabulary())}


@dataclass(frozen=True)
class Layout:
    """The fixed lengths of a row, in tokens. `system` is the room for words before the image, which takes `picture`."""

    picture: int = IMAGE_TOKENS
    system: int = 7
    caption: int = 40
    questions: int = 9
    question: int = 12

    @property
    def prefix(self) -> int:
        """Start token, system words, the word for the user, image."""
        return 1 + self.system + 1 + self.picture

    @property
    def total(self) -> int:
        """The length of a row."""
        return self.prefix + self.caption + self.questions * self.question

    def start(self, slot: int) -> int:
        """The first column of a slot; slot 0 is the caption."""
        return self.prefix if slot == 0 else self.prefix + self.caption + (slot - 1) * self.question

    def room(self, slot: int) -> int:
        """The number of tokens a slot holds."""
        return self.caption if slot == 0 else self.question


@dataclass(frozen=True)
class DialogueTurn:
    """One prompt and its answer, as words. `weight` is what each answer token counts in the loss."""

    prompt: str
    answer: str
    weight: float


@dataclass(frozen=True)
class TrainingRow:
    """What is packed into one row. A row without image gets the positions a prompt without image has."""

    turns: Sequence[DialogueTurn]
    system: str = ""
    image: bool = True


@dataclass(frozen=True)
class Packed:
    """A batch of rows. Shapes (batch, total); `positions` (axes, batch, total) where a token has several.

    `visible` has shape (batch, 1, 1, prefix): 0 for a key in sight, HIDDEN else.
    """

    ids: Tensor
    positions: Tensor
    targets: Tensor
    weights: Tensor
    visible: Tensor

    def to(self, device: torch.device) -> Packed:
        """The same batch on a device."""
        return Packed(*(part.to(device) for part in vars(self).values()))


EOS_WEIGHT = 0.5


def encode(text: str) -> list[int]:
    """Token ids of words that are all in the vocabulary."""
    return [IDS[word] for word in text.split()]


def pack(rows: Sequence[TrainingRow], layout: Layout, span: Span) -> Packed:
    """Lay rows out, with pictures of this span. Raises ValueError where a turn does not fit its slot."""
    shape = (len(rows), layout.total)
    ids = np.full(shape, IDS[PAD], dtype=np.int64)
    positions = np.zeros((span.axes, *shape), dtype=np.int64)
    targets = np.full(shape, IGNORED, dtype=np.int64)
    weights = np.zeros(shape, dtype=np.float32)
    visible = np.full((len(rows), layout.prefix), HIDDEN, dtype=np.float32)
    for at, row in enumerate(rows):
        length = _lay_prefix(row, layout, span, (ids[at], positions[:, at], visible[at]))
        for slot, turn in enumerate(row.turns):
            _lay_turn(turn, slot, layout, length, (ids[at], positions[:, at], targets[at], weights[at]))
    laid = positions[0] if span.axes == 1 else positions
    tensors = [torch.from_numpy(part) for part in (ids, laid, targets, weights, visible[:, None, None])]
    return Packed(*tensors)


def _lay_prefix(row: TrainingRow, layout: Layout, span: Span, parts: tuple[NDArray[Any], ...]) -> int:
    """Fill the prefix from its right end, as left padding does; return the position that follows it."""
    ids, positions, visible = parts
    words = [IDS[START], *encode(row.system), IDS[USER]]
    text_end = layout.prefix - layout.picture
    begin = text_end - len(words)
    if begin < 0:
        raise ValueError(f"pack: the system words take {len(words) - 2} tokens, there is room for {layout.system}.")
    ids[begin:text_end] = words
    ids[text_end : layout.prefix] = [*span.before, *[IDS[IMAGE]] * IMAGE_TOKENS, *span.after]
    positions[:, begin:text_end] = np.arange(len(words))
    within, advance = span.places
    positions[:, text_end : layout.prefix] = len(words) + within
    visible[begin : layout.prefix if row.image else text_end] = 0
    return len(words) + advance * row.image


def _lay_turn(turn: DialogueTurn, slot: int, layout: Layout, first: int, parts: tuple[NDArray[Any], ...]) -> None:
    ids, positions, targets, weights = parts
    prompt = encode(f"{turn.prompt} {ASSISTANT}")
    answer = [*encode(turn.answer), IDS[END]]
    words = prompt + answer
    start = layout.start(slot)
    if len(words) - 1 > layout.room(slot):
        raise ValueError(f"pack: {turn.prompt!r} with its answer takes {len(words) - 1}, room {layout.room(slot)}.")
    ids[start : start + len(words) - 1] = words[:-1]
    positions[:, start : start + layout.room(slot)] = first + np.arange(layout.room(slot))
    answer_columns = slice(start + len(prompt) - 1, start + len(words) - 1)
    targets[answer_columns] = answer
    weights[answer_columns] = [turn.weight] * (len(answer) - 1) + [EOS_WEIGHT]


def packed_attention(
    _: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float,
    layout: Layout,
    **_unused: Any,
) -> tuple[Tensor, None]:
    """Attention of packed rows; shapes (batch, heads, total, size), mask is `Packed.visible`; heads may share keys.

    Slots are handled as blocks: a full mask would spend most of its work on pairs that do not see each other.
    """
    prefix, middle = layout.prefix, layout.prefix + layout.caption
    query = query * scaling
    if key.shape[1] < query.shape[1]:
        key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], dim=1) for part in (key, value))
    shared_key, shared_value = key[:, :, :prefix], value[:, :, :prefix]
    first = query[:, :, :prefix] @ shared_key.transpose(-1, -2) + attention_mask + _causal(prefix, query)
    parts = [first.softmax(-1) @ shared_value]
    slots = ((prefix, middle, 1, layout.caption), (middle, layout.total, layout.questions, layout.question))
    for begin, end, count, width in slots:
        questions = query[:, :, begin:end]
        shared = questions @ shared_key.transpose(-1, -2) + attention_mask
        own_query, own_key, own_value = (x[:, :, begin:end].unflatten(2, (count, width)) for x in (query, key, value))
        inner = own_query @ own_key.transpose(-1, -2) + _causal(width, query)
        mixed = torch.cat((shared.unflatten(2, (count, width)), inner), dim=-1).softmax(-1)
        from_shared = mixed[..., :prefix].flatten(2, 3) @ shared_value
        parts.append(from_shared + (mixed[..., prefix:] @ own_value).flatten(2, 3))
    return torch.cat(parts, dim=2).transpose(1, 2), None


def _causal(length: int, like: Tensor) -> Tensor:
    return torch.full((length, length), HIDDEN, dtype=like.dtype, device=like.device).triu(1)


AttentionInterface.register(PACKED, packed_attention)
