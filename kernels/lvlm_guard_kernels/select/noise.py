"""Gumbel noise that belongs to a token: a function of a counter, so neither order nor batch mates matter."""

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


def gumbel(seed: int, step: int | Tensor, rows: Tensor, tokens: Tensor) -> Tensor:
    """Return standard Gumbel noise, fp32, of shape `[rows, tokens]`.

    Args:
        seed: Key of the generator, of which 64 bits count.
        step: Second word of the counter, of which 32 bits count: a number, or one in a tensor on the device of the ids.
        rows: Ids of rows `[rows]`, int64: words three and four.
        tokens: Ids of tokens `[rows, tokens]`, int64: the first word.
    """
    row_ids = rows.unsqueeze(-1).expand_as(tokens)
    steps = _spread_step(step, tokens)
    return convert_to_gumbel(philox(seed, tokens, steps, row_ids & WORD, row_ids >> 32 & WORD))


def _spread_step(step: int | Tensor, tokens: Tensor) -> Tensor:
    if isinstance(step, Tensor):
        return (step.long() & WORD).reshape(()).expand_as(tokens)
    return torch.full_like(tokens, step & WORD)


def convert_to_gumbel(words: Tensor) -> Tensor:
    """Return words as Gumbel noise in fp32."""
    # Large noise decides a draw. It comes from small waiting times, which log1p keeps exact where log(1 - x) rounds.
    return -(-torch.log1p(-convert_to_uniform(words).clamp(LEAST, MOST))).log()


def philox(seed: int, *counter: Tensor) -> Tensor:
    """Return the first word of Philox 4x32-10 (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011).

    Args:
        seed: The key, of which 64 bits count.
        counter: Four words, each int64 from 0 to 2**32 - 1.

    Returns:
        int64 from 0 to 2**32 - 1.
    """
    first, second, third, fourth = counter
    low_key, high_key = seed & WORD, seed >> 32 & WORD
    for _ in range(ROUNDS):
        # Products have 64 bits, so the top one becomes the sign; a shift by 32 and a mask recover the high word.
        first_product, third_product = first * MULTIPLIERS[0], third * MULTIPLIERS[1]
        first, second = third_product >> 32 & WORD ^ second ^ low_key, third_product & WORD
        third, fourth = first_product >> 32 & WORD ^ fourth ^ high_key, first_product & WORD
        low_key, high_key = low_key + INCREMENTS[0] & WORD, high_key + INCREMENTS[1] & WORD
    return first


def convert_to_uniform(words: Tensor) -> Tensor:
    """Return words as fp32 numbers from 0 up to 1, as Triton's `rand` does: words with bit 31 set are mirrored."""
    return torch.where(words >> 31 == 1, WORD - words, words).float() * SCALE
