"""What models add to their attention scores, and which of it the attention in use adds."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Attention = Callable[..., tuple[Tensor, Tensor | None]]
TERMS: dict[str, Any] = {
    "softcap": 0.5,
    "position_bias": torch.tensor([[[[2.0, 0.0]]]]),
    "sinks": torch.ones(1, 1, 1, 1),
    "s_aux": torch.ones(1),
}
"""By the name under which a model hands it to its attention, one that changes what a query attends to."""


def keep_added(attention: Attention, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a model hands to an attention, without the terms that this attention leaves out."""
    return {
        name: value for name, value in options.items() if name not in TERMS or value is None or _adds(attention, name)
    }


@functools.cache
def _adds(attention: Attention, name: str) -> bool:
    """Whether a term makes a difference to the output of an attention."""
    query, keys = torch.tensor([[[[4.0, 1.0]]]]), torch.eye(2)[None, None]
    term = TERMS[name]
    plain, changed = (attention(nn.Identity(), query, keys, keys, None, **options)[0] for options in ({}, {name: term}))
    return not torch.equal(plain, changed)
