"""Turns of hidden states that keep their length."""

from torch import Tensor
from torch.linalg import vector_norm

TINY = 1e-12


def length(hidden: Tensor) -> Tensor:
    """Euclidean norms `[..., 1]` of hidden states `[..., hidden]`."""
    found: Tensor = vector_norm(hidden, dim=-1, keepdim=True)
    return found


def at_length(hidden: Tensor, wanted: Tensor) -> Tensor:
    """Hidden states `[..., hidden]` brought to lengths `[..., 1]`; zero where they are zero."""
    return hidden * (wanted / (length(hidden) + TINY))
