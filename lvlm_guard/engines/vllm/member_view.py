"""What an edit of hidden states may look at in an engine, where a prompt runs in pieces, and where it applies in a piece."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from lvlm_guard.errors import StrategyRefused
from lvlm_guard.strategy.generation import Generation


@dataclass(frozen=True, eq=False)
class MemberPrompt:
    """The prompt of one request, and where edits apply in a piece of the request.

    Args:
        ids: Its token ids, int64 `[length]`, on the CPU.
        placeholder: Id that stands for parts of an image in it, or None.
    """

    ids: Tensor
    placeholder: int | None

    def find_image(self, start: int, stop: int) -> Tensor:
        """Return which of these positions are parts of an image, bool `[stop - start]`; none behind the prompt."""
        of_prompt = self._image[start:stop]
        return torch.cat([of_prompt, of_prompt.new_zeros(stop - start - len(of_prompt))])

    def select(self, name: str, when: str, start: int, stop: int) -> Tensor:
        """Return which positions of a piece are in a set, bool `[stop - start]`.

        Args:
            name: The set, as edits of hidden states and queries of attention edits name it. The prompt's last position predicts, as
                every later one does.
            when: `prefill`, `decode` or `both`.
            start: First position of the piece.
            stop: The one behind its last.
        """
        positions = torch.arange(start, stop)
        applies = self._select_set(name, positions)
        if when == "both":
            return applies
        generated = positions >= len(self.ids)
        return applies & (generated if when == "decode" else ~generated)

    def find_keys(self, name: str, stop: int) -> Tensor:
        """Return a key set of attention edits among the positions up to `stop`, bool `[stop]`."""
        positions = torch.arange(stop)
        if name == "all":
            return torch.ones(stop, dtype=torch.bool)
        if name == "generated":
            return positions >= len(self.ids)
        if name == "before_image":
            image = self._image.nonzero()
            return positions < (int(image[0]) if len(image) else 0)
        return self.find_image(0, stop) if name == "image" else positions >= self._behind_image

    def _select_set(self, name: str, positions: Tensor) -> Tensor:
        if name == "image":
            return self.find_image(int(positions[0]), int(positions[-1]) + 1)
        if name == "all":
            return torch.ones_like(positions, dtype=torch.bool)
        predicting = positions >= len(self.ids) - 1
        return predicting if name == "predicting" else predicting | (positions >= self._behind_image)

    @functools.cached_property
    def _behind_image(self) -> int:
        """The first position behind the last image; without an image, the first generated one."""
        image = self._image.nonzero()
        return int(image[-1]) + 1 if len(image) else len(self.ids)

    @functools.cached_property
    def _image(self) -> Tensor:
        return (
            torch.zeros_like(self.ids, dtype=torch.bool) if self.placeholder is None else self.ids == self.placeholder
        )


@dataclass(frozen=True, eq=False)
class MemberView:
    """The `View` of an edit in one layer, for one piece of one request: one row.

    Args:
        gen: The generation of the group.
        layer: Index of the layer.
        positions: Where the edit applies, bool `[1, positions]`.
        image: Which positions are parts of an image, bool `[1, positions]`.
    """

    gen: Generation
    layer: int
    positions: Tensor
    image: Tensor

    @property
    def keys(self) -> Tensor:
        """The same as `positions`: hidden states have no keys of their own."""
        return self.positions

    @property
    def valid(self) -> Tensor:
        """All positions: requests of an engine are not padded."""
        return torch.ones_like(self.positions)

    @property
    def predicting(self) -> int:
        """Not known of a piece."""
        self._refuse("predicting")

    @property
    def input(self) -> Tensor | None:
        """Not kept."""
        self._refuse("input")

    def spread(self, *_: Any) -> Tensor:
        """Not possible: a piece may end before the position whose values its others get."""
        self._refuse("spread")

    def fit(self, *_: Any) -> Tensor:
        """Not possible: values over every position so far are not kept."""
        self._refuse("fit")

    def observed(self, *_: Any) -> Tensor:
        """Not possible: nothing is captured."""
        self._refuse("observed")

    def readout(self, *_: Any) -> Tensor:
        """Not possible: layers are read after the forward."""
        self._refuse("readout")

    def _refuse(self, name: str) -> NoReturn:
        raise StrategyRefused(
            f"An edit looks at view.{name}, which requests in vLLM do not have, whose prompts run in pieces: run it in the process, "
            "Guard(model, processor)."
        )


def find_state(value: Any) -> Tensor:
    """Return the hidden states of what a layer's block returns: the first of a tuple, or all of it."""
    states: Tensor = value[0] if isinstance(value, tuple) else value
    return states
