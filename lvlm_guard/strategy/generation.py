"""The one object that travels through every hook of one guarded call."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lvlm_guard.deprecation import renamed_attribute, warn_renamed
from lvlm_guard.errors import InputError, ProcessorNeeded
from lvlm_guard.strategy import user_functions
from lvlm_guard.strategy.branches import MAIN
from lvlm_guard.strategy.edits import Readout, readout_layers
from lvlm_guard.strategy.terms import Source, Statistics


class Rows:
    """Tensors with a row dimension that must follow the beams, and positions that must follow rejected candidates.

    Dimension 0 of every tensor is the rows of generate (batch times beams or returned sequences). The core selects
    rows when beams are reordered, and cuts dimension 1 of tensors put with `positions=True` (one entry per generated
    position) when candidates of assisted decoding are rejected.
    """

    def __init__(self) -> None:
        self._tensors: dict[str, Tensor] = {}
        self._per_position: set[str] = set()

    def put(self, name: str, tensor: Tensor, *, positions: bool = False) -> None:
        """Keep `tensor` under `name`; with `positions`, dimension 1 counts generated positions."""
        self._tensors[name] = tensor
        (self._per_position.add if positions else self._per_position.discard)(name)

    def append(self, name: str, tensor: Tensor) -> None:
        """Append `[rows, positions, ...]` of this forward to what is kept under `name`."""
        kept = self._tensors.get(name)
        self.put(name, tensor if kept is None else torch.cat([kept, tensor], dim=1), positions=True)

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def select(self, index: Tensor) -> None:
        """Reorder the rows of every tensor."""
        for name, tensor in self._tensors.items():
            self._tensors[name] = tensor.index_select(0, index.to(tensor.device))

    def crop(self, positions: int) -> None:
        """Forget what was kept for generated positions from `positions` on."""
        for name in self._per_position:
            self._tensors[name] = self._tensors[name][:, :positions]


@dataclass
class Forward:
    """What one guarded forward produced, before and after the terms were added.

    Args:
        main: Raw logits of main `[rows, positions, vocab]`.
        branches: Raw logits of each branch by key, same shape.
        first_position: Index among the generated tokens that position 0 predicts; 0 in the prefill.
        combined: Logits that generate receives, once the terms were added.
        statistics: Row statistics, once somebody asked for them.
        readouts: Logits of inner layers of main by (layer, whether normed), same shape.
    """

    main: Tensor
    branches: Mapping[Hashable, Tensor]
    first_position: int
    combined: Tensor | None = None
    statistics: Statistics | None = None
    readouts: Mapping[tuple[int, bool], Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._stacked: dict[tuple[tuple[int, ...], bool], Tensor] = {}

    def stacked(self, layers: tuple[int, ...], *, normed: bool) -> Tensor:
        """Readouts of several layers `[layers, rows, positions, vocab]`, put together once."""
        key = layers, normed
        if key not in self._stacked:
            self._stacked[key] = torch.stack([self.readouts[layer, normed] for layer in layers])
        return self._stacked[key]

    def select(self, index: Tensor) -> Forward:
        """The same of other rows; statistics are taken anew where somebody asks."""

        def rows(tensor: Tensor) -> Tensor:
            return tensor.index_select(0, index.to(tensor.device))

        return Forward(
            rows(self.main),
            {key: rows(one) for key, one in self.branches.items()},
            self.first_position,
            None if self.combined is None else rows(self.combined),
            readouts={key: rows(one) for key, one in self.readouts.items()},
        )


@dataclass(frozen=True)
class PromptStates:
    """A prompt run once.

    Args:
        hidden: Residual stream at the last position after each layer `[rows, layers, hidden]`, in fp32.
        logits: Next-token logits `[rows, vocab]`, in fp32.
    """

    hidden: Tensor
    logits: Tensor


@dataclass
class Generation:
    """State of one guarded call. The core writes, strategies read; what a strategy keeps goes to `state` or `rows`.

    Args:
        inputs: The keyword arguments of the call that are model inputs, as the user passed them.
        input_ids: Prompt `[batch, length]`, left-padded.
        attention_mask: `[batch, length]`, 0 at padding.
        image_mask: Bool `[batch, length]`, true at image placeholders.
        has_image: Whether the request brings pixels or already encoded images.
        tokenizer: The tokenizer, or None.
        image_token: Id of the image placeholder, or None.
        config: The model's config; what was fitted offline is checked against it.
        depth: Layers of the decoder.
        heads: Query heads of a decoder layer.
        tied: Whether the head shares the weights of the token embeddings, so that their readout is the token itself.
        rows_per_request: Rows of generate per request: beams or returned sequences.
        pictures: The picture of each request where the guard knows them, else None.
        rows: Per-row tensors that follow beams and rejected candidates.
        state: Anything else a strategy keeps for this call, by its name.
        observations: What captures observed last, by (key of the capture, layer).
        measure: Makes the row statistics of a forward.
        prefix: Runs the prompt of main (None) or of a branch once, with no edit inside; known from `start` on.
        ask: Asks the guarded model about the picture of a request; known in `finish`.
        output_ids: Generated ids `[batch, tokens]`; known in `finish`.
    """

    inputs: Mapping[str, Any]
    input_ids: Tensor
    attention_mask: Tensor
    image_mask: Tensor
    has_image: bool = False
    tokenizer: Any = None
    image_token: int | None = None
    config: Any = None
    depth: int = 0
    heads: int = 0
    tied: bool = False
    rows_per_request: int = 1
    pictures: tuple[Any, ...] | None = None
    measure: Callable[[Generation], Statistics] | None = None
    prefix: Callable[[Any], PromptStates] | None = None
    ask: Callable[[Sequence[str], int], list[str]] | None = None
    output_ids: Tensor | None = None
    rows: Rows = field(default_factory=Rows)
    state: dict[str, Any] = field(default_factory=dict)
    observations: dict[tuple[Hashable, int], Tensor] = field(default_factory=dict)
    forward: Forward | None = None

    @property
    def step(self) -> int:
        """Index of the first generated token that this forward predicts; 0 in the prefill."""
        return self._current.first_position

    @property
    def positions(self) -> Tensor:
        """Indices of the generated tokens that this forward predicts `[positions]`, on the device of the logits."""
        logits = self._current.main
        return torch.arange(logits.shape[1], device=logits.device) + self.step

    @property
    def combined(self) -> Tensor:
        """Logits that generate receives `[rows, positions, vocab]`; known in `observe`."""
        if self._current.combined is None:
            raise InputError("gen.combined is known only in observe, after the terms were added.")
        return self._current.combined

    @property
    def statistics(self) -> Statistics:
        """Row statistics of this forward; known in `terms` and `observe`."""
        now = self._current
        if now.statistics is None:
            if self.measure is None:
                raise InputError("This generation was made without row statistics.")
            now.statistics = self.measure(self)
        return now.statistics

    def logits(self, source: Source = MAIN) -> Tensor:
        """Raw logits `[rows, positions, vocab]` of main or a branch in this forward; read only."""
        if isinstance(source, str) and source == MAIN:
            return self._current.main
        key = getattr(source, "key", source)
        if key not in self._current.branches:
            known = ", ".join(repr(name) for name in self._current.branches) or "none"
            raise InputError(f"No branch has the key {key!r}. Branches of this call: {known}.")
        return self._current.branches[key]

    def readouts(self, readout: Readout) -> Tensor:
        """Logits `[layers, rows, positions, vocab]` of a readout that this strategy asked for, in its order; read only."""
        found = self._current.readouts
        layers = readout_layers(readout, self.depth)
        if any((layer, readout.final_norm) not in found for layer in layers):
            raise InputError(f"{readout} was not asked for: yield it in the readouts hook.")
        return self._current.stacked(layers, normed=readout.final_norm)

    def tokenize(self, text: str) -> tuple[int, ...]:
        """Token ids of `text` without special tokens.

        Raises:
            ProcessorNeeded: The guard has neither processor nor tokenizer.
        """
        if self.tokenizer is None:
            raise ProcessorNeeded(
                f"Text must be tokenized ({text[:40]!r}), so give the guard the processor: Guard(model, processor)."
            )
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def call_user_function(self, function: str | Callable[..., Any], *arguments: Any, what: str, timeout: float) -> Any:
        """What a callable of the user's returns, given itself or as "package.module:function".

        Raises:
            InputError: It cannot be imported, raises, or takes longer than `timeout` seconds; named as `what`.
        """
        return user_functions.call_user_function(function, *arguments, what=what, timeout=timeout)

    def consult(self, function: str | Callable[..., Any], *arguments: Any, what: str, timeout: float) -> Any:
        """Deprecated: use `call_user_function`."""
        warn_renamed("gen.consult", "gen.call_user_function")
        return self.call_user_function(function, *arguments, what=what, timeout=timeout)

    @property
    def _current(self) -> Forward:
        if self.forward is None:
            raise InputError("There are no logits yet: this is known only in terms and observe.")
        return self.forward

    expansion = renamed_attribute("gen.expansion", "rows_per_request")
