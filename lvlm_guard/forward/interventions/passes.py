"""Where a forward pass stands: whose rows it holds, which positions are image, prompt or generated tokens."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from lvlm_guard.errors import InputError
from lvlm_guard.strategy.edits import HiddenEdit
from lvlm_guard.strategy.generation import Generation

QUERY_SETS = {"after_image": "after_image_or_predicting"}
"""Queries and positions of edits whose set of positions has another name than the key set that is spelt the same."""

_current: ContextVar[Pass | None] = ContextVar("lvlm_guard_pass", default=None)


@dataclass(frozen=True)
class Prompt:
    """The prompt of main or of a branch: bool `[rows, length]` each."""

    image: Tensor
    valid: Tensor

    @property
    def length(self) -> int:
        """Positions of the prompt, padding included."""
        return int(self.image.shape[1])


class Place(NamedTuple):
    """Where an edit applies in one forward, the same in every layer.

    Args:
        rows: The rows of its block; None where the forward holds no others.
        everywhere: Whether it applies at every position, known without looking at the device.
    """

    rows: slice | None
    everywhere: bool


@dataclass(eq=False)
class Pass:
    """One forward of the decoder.

    Args:
        gen: The travelling object.
        prompts: The prompt of each block of rows, by key, in the order of the rows.
        generated: Generated tokens up to the end of this forward.
        new: Positions that this forward runs.
        owner: What is done inside this pass; edits of other calls leave it alone.
        hidden: What the layers that are read out returned, all of its rows and positions.
    """

    gen: Generation
    prompts: dict[Hashable, Prompt]
    generated: int
    new: int
    owner: Any = None
    hidden: dict[int, Tensor] = field(default_factory=dict)
    online: dict[int, Tensor] = field(default_factory=dict)
    beside: dict[tuple[int, bool], Tensor] = field(default_factory=dict)
    joined: int = 0
    _first: dict[tuple[Hashable, str, str], int] = field(default_factory=dict)
    _sets: dict[tuple[Hashable, str], Tensor] = field(default_factory=dict)
    _edited: dict[tuple[Hashable, str, str], Tensor] = field(default_factory=dict)
    _places: dict[int, Place | None] = field(default_factory=dict)

    @property
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
        return min(self.new, self.generated + 1)

    def rows(self, key: Hashable) -> slice:
        """The rows of a block in this forward."""
        start = 0
        for name, prompt in self.prompts.items():
            stop = start + prompt.image.shape[0]
            if name == key:
                return slice(start, stop)
            start = stop
        raise InputError(f"This forward holds no rows of {key!r}.")

    def captured(self, layer: int, key: Hashable) -> Tensor:
        """What a layer returned for the rows of a block, where they predict generated tokens."""
        return self.hidden[layer][self.rows(key), -self.predicting :]

    def positions(self, key: Hashable, name: str) -> Tensor:
        """A set of positions of one block, bool `[rows, total]`, the newest at the right end.

        `image`, `before_image`, `after_image`, `generated`, `valid`, `all` (valid ones), `prompt`, `predicting` (those
        that predict generated tokens), `after_image_or_predicting`.
        """
        if (key, name) not in self._sets:
            self._sets[key, name] = self._positions(key, name)
        return self._sets[key, name]

    def _positions(self, key: Hashable, name: str) -> Tensor:
        prompt = self.prompts[key]
        rows = prompt.image.shape[0]
        index = torch.arange(self.total, device=prompt.image.device).expand(rows, -1)
        own = index >= self.prompt_length
        simple = {
            "generated": lambda: own,
            "prompt": lambda: ~own,
            "predicting": lambda: index >= self.prompt_length - 1,
            "image": lambda: self._aligned(prompt.image),
            "valid": lambda: self._aligned(prompt.valid) | own,
            "all": lambda: self.positions(key, "valid"),
        }
        return simple[name]() if name in simple else self._beside_image(key, name, own)

    def _beside_image(self, key: Hashable, name: str, own: Tensor) -> Tensor:
        """What lies before or after the image; a prompt without image has nothing but its own tokens after it."""
        valid, image = self.positions(key, "valid"), self.positions(key, "image")
        seen = image.long().cumsum(-1)
        has_image = seen[:, -1:] > 0
        if name == "before_image":
            return valid & (seen == 0) & has_image
        after = valid & (seen == seen[:, -1:]) & ~image & (has_image | own)
        return after if name == "after_image" else after | self.positions(key, "predicting")

    def _aligned(self, mask: Tensor) -> Tensor:
        return pad(mask, (self.prompt_length - mask.shape[1], self.generated), value=False)

    def first(self, key: Hashable, positions: str, when: str) -> int:
        """Index of the first position of this forward where an edit may apply; `new` where it applies nowhere.

        Known without looking at the device but for one look in a prefill.
        """
        decoding = self.new <= self.generated
        if when == ("prefill" if decoding else "decode") and (decoding or self.generated == 0):
            return self.new
        if decoding or positions == "all":
            return 0
        if positions == "predicting":
            return self.new - self.predicting
        if (key, positions, when) not in self._first:
            found = self.edited(key, positions, when).any(0).nonzero()
            self._first[key, positions, when] = int(found[0]) if len(found) else self.new
        return self._first[key, positions, when]

    def place(self, edit: HiddenEdit) -> Place | None:
        """Where an edit applies; None where it applies nowhere, or the forward holds none of its rows."""
        if id(edit) not in self._places:
            self._places[id(edit)] = self._place(edit)
        return self._places[id(edit)]

    def _place(self, edit: HiddenEdit) -> Place | None:
        if edit.branch not in self.prompts or self.first(edit.branch, edit.positions, edit.when) == self.new:
            return None
        everywhere = self.new <= self.generated and edit.positions != "image" and edit.when != "prefill"
        return Place(self.rows(edit.branch) if len(self.prompts) > 1 else None, everywhere)

    def edited(self, key: Hashable, positions: str, when: str) -> Tensor:
        """Where an edit applies among the positions of this forward, bool `[rows, new]`."""
        if (key, positions, when) not in self._edited:
            where = self.positions(key, QUERY_SETS.get(positions, positions))
            if when != "both":
                where = where & self.positions(key, "prompt" if when == "prefill" else "generated")
            self._edited[key, positions, when] = where[:, -self.new :]
        return self._edited[key, positions, when]


@contextmanager
def during(now: Pass | None) -> Iterator[None]:
    """Let everything inside the layers know that this pass runs."""
    token = _current.set(now)
    try:
        yield
    finally:
        _current.reset(token)


def current() -> Pass | None:
    """The pass that runs in this context, if any."""
    return _current.get()


@dataclass(slots=True, eq=False)
class _PassView:
    """What a pass lets an edit in one of its layers look at; everything lies on that layer's device."""

    now: Pass
    key: Hashable
    layer: int
    device: torch.device

    @property
    def gen(self) -> Generation:
        """The travelling object."""
        return self.now.gen

    @property
    def predicting(self) -> int:
        """How many of the last positions predict generated tokens."""
        return self.now.predicting

    @property
    def image(self) -> Tensor:
        """Which positions of this forward are image tokens, bool `[rows, positions]`."""
        return self.now.positions(self.key, "image")[:, -self.now.new :].to(self.device)

    @property
    def valid(self) -> Tensor:
        """Which positions of this forward are not padding, bool `[rows, positions]`."""
        return self.now.positions(self.key, "valid")[:, -self.now.new :].to(self.device)

    def spread(self, values: Tensor) -> Tensor:
        """Values `[rows, predicting, ...]` for all positions; earlier ones get what the first predicting one has."""
        before = self.now.new - values.shape[1]
        first = values[:, :1].expand(-1, before, *values.shape[2:])
        return torch.cat([first, values], dim=1)

    def observed(self, key: Hashable, layer: int) -> Tensor:
        """What a probe observed."""
        if (key, layer) not in self.gen.observations:
            raise InputError(f"Nothing was observed under {key!r} in layer {layer} before this point.")
        return self.gen.observations[key, layer].to(self.device)

    def readout(self, layer: int) -> Tensor:
        """Next-token logits of an online readout of an earlier layer."""
        if layer not in self.now.online:
            raise InputError(f"Layer {layer} was not read out online before this point.")
        return self.now.online[layer].to(self.device)


@dataclass(slots=True, eq=False)
class AttentionView(_PassView):
    """The `View` of an attention edit or a probe."""

    positions: Tensor
    keys: Tensor
    input: Tensor | None = None

    def fit(self, values: Tensor) -> Tensor:
        """Values over every position so far `[..., positions]`, cut to the keys that this layer holds."""
        return values[..., -self.keys.shape[-1] :]


@dataclass(slots=True, eq=False)
class HiddenView(_PassView):
    """The `View` of a hidden edit; masks are made when they are looked at."""

    edit: HiddenEdit
    input: Tensor | None

    @property
    def positions(self) -> Tensor:
        """Where the edit applies among the positions handed over, bool `[rows, positions]`."""
        return self.now.edited(self.key, self.edit.positions, self.edit.when).to(self.device)

    @property
    def keys(self) -> Tensor:
        """The same: hidden states have no keys of their own."""
        return self.positions

    def fit(self, values: Tensor) -> Tensor:
        """Values over every position so far `[..., positions]`, cut to the positions handed over."""
        return values[..., -self.now.new :]
