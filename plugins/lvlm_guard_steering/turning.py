"""Turns of hidden states that keep their norms."""

from torch import Tensor
from torch.linalg import vector_norm

TINY = 1e-12


def norm(hidden: Tensor) -> Tensor:
    """Return the Euclidean norms `[..., 1]` of hidden states `[..., hidden]`."""
    norms: Tensor = vector_norm(hidden, dim=-1, keepdim=True)
    return norms


def scale_to(hidden: Tensor, norms: Tensor) -> Tensor:
    """Scale hidden states `[..., hidden]` to norms `[..., 1]`; they stay zero where they are zero."""
    return hidden * (norms / (norm(hidden) + TINY))
