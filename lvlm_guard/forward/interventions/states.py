"""Hidden states as modules take and return them: in tuples, flattened to tokens, or of the last positions alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lvlm_guard.errors import ModelRefused
from lvlm_guard.forward.interventions.layout import ForwardLayout


def first_tensor(output: Any) -> Any:
    """The hidden states of what a module returns."""
    return output[0] if isinstance(output, tuple) else output


def replace_first(output: Any, states: Tensor) -> Any:
    """What a module returns, with other hidden states."""
    return (states, *output[1:]) if isinstance(output, tuple) else states


def first_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The hidden states that a module takes, or None where it names them otherwise."""
    return args[0] if args else kwargs.get("hidden_states")


def align(states: Any, layout: ForwardLayout) -> Tensor | None:
    """Hidden states as `[rows, positions, hidden]`, the newest position last; None where they are laid out otherwise.

    Layers of several residual streams hand on `[rows, positions, streams, hidden]`. Experts flatten rows and positions. Layers that keep no keys of their own may run just the last positions, those whose
    logits are read.
    """
    rows = layout.row_count
    if not isinstance(states, Tensor) or states.ndim not in (2, 3, 4):
        return None
    flat = states.ndim == 2  # noqa: PLR2004 - tokens, hidden
    if states.shape[0] % rows or (not flat and states.shape[0] != rows):
        return None
    count = states.shape[0] // rows if flat else states.shape[1]
    if count != layout.new and count > layout.predicting:
        return None
    return states.unflatten(0, (rows, count)) if flat else states


def align_or_refuse(states: Any, layout: ForwardLayout, owner: str) -> Tensor:
    """Hidden states as `[rows, positions, hidden]`, or of several streams; `owner` says in the error whose they are.

    Raises:
        ModelRefused: They are laid out otherwise.
    """
    if (aligned := align(states, layout)) is not None:
        return aligned
    shape = tuple(states.shape) if isinstance(states, Tensor) else type(states).__name__
    raise ModelRefused(
        f"{owner} of this model is {shape}, not [{layout.row_count} rows, {layout.new} positions, hidden], so it can be "
        "neither edited nor read. Choose a strategy that works on attention or on logits."
    )
