"""Where things lie in one forward: whose rows it holds, which positions are image, prompt or generated tokens."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from lvlm_guard.errors import InputError
from lvlm_guard.strategy.edits import HiddenEdit

QUERY_SETS = {"after_image": "after_image_or_predicting"}
"""Queries and positions of edits whose set of positions has another name than the key set that is spelt the same."""


@dataclass(frozen=True)
class AcrossLayout:
    """What an encoder read: bool `[rows, length]` each.

    Args:
        image: Positions of the image.
        valid: Those that are no padding.
        is_known: Whether the positions are those of the prompt, so that the image can be told from the text.
    """

    image: Tensor
    valid: Tensor
    is_known: bool = True

    def positions(self, name: str) -> Tensor:
        """A set of positions; those that hold generated tokens are none of these."""
        count = self.image.long().cumsum(-1)
        return {
            "image": self.image,
            "all": self.valid,
            "before_image": self.valid & (count == 0) & (count[:, -1:] > 0),
            "after_image": self.valid & ~self.image & (count == count[:, -1:]) & (count > 0),
        }.get(name, torch.zeros_like(self.valid))

    def select(self, index: Tensor) -> AcrossLayout:
        """The layout of other rows."""
        image, valid = self.image[index.to(self.image.device)], self.valid[index.to(self.valid.device)]
        return AcrossLayout(image, valid, self.is_known)


@dataclass(frozen=True)
class PromptLayout:
    """The prompt of main or of a branch: bool `[rows, length]` each, and what its encoder read, where there is one."""

    image: Tensor
    valid: Tensor
    across: AcrossLayout | None = None

    @property
    def length(self) -> int:
        """Positions of the prompt, padding included."""
        return int(self.image.shape[1])

    def select(self, index: Tensor) -> PromptLayout:
        """The layout of other rows."""
        across = None if self.across is None else self.across.select(index)
        return PromptLayout(self.image[index.to(self.image.device)], self.valid[index.to(self.valid.device)], across)


class EditPlace(NamedTuple):
    """Where an edit applies in one forward, the same in every layer.

    Args:
        rows: The rows of its block; None where the forward holds no others.
        everywhere: Whether it applies at every position, known without looking at the device.
    """

    rows: slice | None
    everywhere: bool


@dataclass(frozen=True, eq=False)
class ForwardLayout:
    """What one forward of the decoder holds. Masks are computed when first asked for, and once.

    Args:
        prompts: The prompt of each block of rows by branch, in the order of the rows.
        generated: Generated tokens up to the end of this forward.
        new: Positions that this forward runs.
        ends: Whether the prompts end in it; a prefix by itself predicts nothing.
    """

    prompts: Mapping[Hashable, PromptLayout]
    generated: int
    new: int
    ends: bool = True
    _sets: dict[tuple[Hashable, str], Tensor] = field(default_factory=dict, init=False, repr=False)
    _edited: dict[tuple[Hashable, str, str], Tensor] = field(default_factory=dict, init=False, repr=False)
    _first: dict[tuple[Hashable, str, str], int] = field(default_factory=dict, init=False, repr=False)
    _places: dict[int, EditPlace | None] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def prompt_length(self) -> int:
        """Positions before the first generated one: those of the longest prompt."""
        return max(prompt.length for prompt in self.prompts.values())

    @property
    def total(self) -> int:
        """Positions up to the end of this forward."""
        return self.prompt_length + self.generated

    @property
    def predicting(self) -> int:
        """How many of this forward's last positions predict generated tokens."""
        return min(self.new, self.generated + 1) if self.ends else 0

    @property
    def is_decoding(self) -> bool:
        """Whether this forward runs generated tokens alone."""
        return self.new <= self.generated

    @property
    def continues(self) -> bool:
        """Whether this forward goes on from positions that ran before it."""
        return self.new < self.total

    @cached_property
    def row_count(self) -> int:
        """Rows of all blocks."""
        return sum(prompt.image.shape[0] for prompt in self.prompts.values())

    def rows(self, branch: Hashable) -> slice:
        """The rows of a block in this forward."""
        start = 0
        for key, prompt in self.prompts.items():
            stop = start + prompt.image.shape[0]
            if key == branch:
                return slice(start, stop)
            start = stop
        raise InputError(f"This forward holds no rows of {branch!r}.")

    def positions(self, branch: Hashable, name: str) -> Tensor:
        """A set of positions of one block, bool `[rows, total]`, the newest at the right end.

        `image`, `before_image`, `after_image`, `generated`, `valid`, `all` (valid ones), `prompt`, `predicting` (those
        that predict generated tokens), `after_image_or_predicting`.
        """
        if (branch, name) not in self._sets:
            self._sets[branch, name] = self._find_positions(branch, name)
        return self._sets[branch, name]

    def _find_positions(self, branch: Hashable, name: str) -> Tensor:
        prompt = self.prompts[branch]
        index = torch.arange(self.total, device=prompt.image.device).expand(prompt.image.shape[0], -1)
        generated = index >= self.prompt_length
        if name in ("generated", "prompt"):
            return generated if name == "generated" else ~generated
        if name == "predicting":
            return index >= self.prompt_length - int(self.ends)
        if name == "image":
            return self._align(prompt.image)
        if name in ("valid", "all"):
            return self._align(prompt.valid) | generated
        return self._find_beside_image(branch, name, generated)

    def _find_beside_image(self, branch: Hashable, name: str, generated: Tensor) -> Tensor:
        """What lies before or after the image; without an image only generated tokens lie after it."""
        valid, image = self.positions(branch, "valid"), self.positions(branch, "image")
        count = image.long().cumsum(-1)
        has_image = count[:, -1:] > 0
        if name == "before_image":
            return valid & (count == 0) & has_image
        after = valid & (count == count[:, -1:]) & ~image & (has_image | generated)
        return after if name == "after_image" else after | self.positions(branch, "predicting")

    def _align(self, mask: Tensor) -> Tensor:
        """A mask over one prompt as one over all positions: prompts are aligned at their right ends."""
        return pad(mask, (self.prompt_length - mask.shape[1], self.generated), value=False)

    def first(self, branch: Hashable, positions: str, when: str) -> int:
        """Index of the first position of this forward where an edit may apply; `new` where it applies nowhere.

        Costs one look at the device in a prefill, none in a decode step.
        """
        if when == ("prefill" if self.is_decoding else "decode") and (self.is_decoding or self.generated == 0):
            return self.new
        if self.is_decoding:
            return self.new if positions == "image" else 0
        if positions == "all":
            return 0
        if positions == "predicting":
            return self.new - self.predicting
        key = branch, positions, when
        if key not in self._first:
            applies = self.edited(branch, positions, when).any(0).nonzero()
            self._first[key] = int(applies[0]) if len(applies) else self.new
        return self._first[key]

    def place(self, edit: HiddenEdit) -> EditPlace | None:
        """Where an edit applies; None where it applies nowhere, or the forward holds none of its rows."""
        if id(edit) not in self._places:
            self._places[id(edit)] = self._find_place(edit)
        return self._places[id(edit)]

    def _find_place(self, edit: HiddenEdit) -> EditPlace | None:
        if edit.branch not in self.prompts or self.first(edit.branch, edit.positions, edit.when) == self.new:
            return None
        everywhere = self.is_decoding and edit.positions != "image" and edit.when != "prefill"
        return EditPlace(self.rows(edit.branch) if len(self.prompts) > 1 else None, everywhere)

    def edited(self, branch: Hashable, positions: str, when: str) -> Tensor:
        """Where an edit applies among the positions of this forward, bool `[rows, new]`."""
        key = branch, positions, when
        if key not in self._edited:
            where = self.positions(branch, QUERY_SETS.get(positions, positions))
            if when != "both":
                where = where & self.positions(branch, "prompt" if when == "prefill" else "generated")
            self._edited[key] = where[:, -self.new :]
        return self._edited[key]
