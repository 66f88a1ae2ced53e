"""Means and variances of what components return, added up over batches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Moments:
    """Weighted sums of vectors, in fp64 on the CPU.

    Args:
        weight: Sum of weights.
        total: Sum of vectors `[dims]`.
        squares: Sum of their squares `[dims]`.
    """

    weight: float
    total: Tensor
    squares: Tensor

    @classmethod
    def of(cls, vectors: Tensor, weights: Tensor | None = None) -> Moments:
        """Return those of vectors `[..., dims]`, with weights `[...]` or all alike."""
        flat = vectors.reshape(-1, vectors.shape[-1]).double()
        each = flat.new_ones(len(flat)) if weights is None else weights.reshape(-1).to(flat)
        sums = (each[:, None] * flat).sum(0), (each[:, None] * flat.square()).sum(0)
        return cls(float(each.sum()), *(value.cpu() for value in sums))

    def __add__(self, moments: Moments) -> Moments:
        return Moments(self.weight + moments.weight, self.total + moments.total, self.squares + moments.squares)

    @property
    def mean(self) -> Tensor:
        """Mean `[dims]`."""
        return self.total / self.weight

    @property
    def variance(self) -> Tensor:
        """Variance `[dims]`."""
        return (self.squares / self.weight - self.mean.square()).clamp_min(0.0)

    def stack(self) -> Tensor:
        """Return mean and variance `[2, dims]`, fp64."""
        return torch.stack([self.mean, self.variance])
