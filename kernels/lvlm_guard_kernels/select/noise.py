"""Gumbel noise that belongs to a token: a counter goes in, so neither order nor company matters."""

from __future__ import annotations

import torch
from torch import Tensor

WORD = 0xFFFFFFFF
MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
INCREMENTS = 0x9E3779B9, 0xBB67AE85
ROUNDS = 10
SCALE = 4.6566127342e-10
LEAST, MOST = 2.0**-31, 1.0 - 2.0**-24
"""Bounds of uniform numbers between which noise is finite."""


def gumbel(seed: int, step: int, rows: Tensor, tokens: Tensor) -> Tensor:
    """Standard Gumbel noise, fp32, of shape `[rows, tokens]`.

    Args:
        seed: Key of the generator, 64 bits of it.
        step: Second word of the counter, 32 bits of it.
        rows: Ids of rows `[rows]`, int64: words three and four.
        tokens: Ids of tokens `[rows, tokens]`, int64: the first word.
    """
    names = rows.unsqueeze(-1).expand_as(tokens)
    return standard(philox(seed, tokens, torch.full_like(tokens, step & WORD), names & WORD, names >> 32 & WORD))


def standard(words: Tensor) -> Tensor:
    """Words as Gumbel noise in fp32; finest where it is large, since there it decides."""
    return -(-torch.log1p(-fraction(words).clamp(LEAST, MOST))).log()


def philox(seed: int, *counter: Tensor) -> Tensor:
    """First word of Philox 4x32-10 (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011).

    Args:
        seed: The key, 64 bits of it.
        counter: Four words, each int64 from 0 to 2**32 - 1.

    Returns:
        int64 from 0 to 2**32 - 1.
    """
    first, second, third, fourth = counter
    low, high = seed & WORD, seed >> 32 & WORD
    for _ in range(ROUNDS):
        one, other = first * MULTIPLIERS[0], third * MULTIPLIERS[1]  # 64 bits each; the sign is one of them
        first, second = other >> 32 & WORD ^ second ^ low, other & WORD
        third, fourth = one >> 32 & WORD ^ fourth ^ high, one & WORD
        low, high = low + INCREMENTS[0] & WORD, high + INCREMENTS[1] & WORD
    return first


def fraction(words: Tensor) -> Tensor:
    """Words as fp32 numbers from 0 up to 1, as Triton's `rand` makes them: what bit 31 is lies on the mirror side."""
    return torch.where(words >> 31 == 1, WORD - words, words).float() * SCALE
