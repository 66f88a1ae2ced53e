"""Terms of several calls that run side by side, in as few kernel calls as their shapes allow."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import lvlm_guard_kernels
import torch
from lvlm_guard_kernels import Combination
from torch import Tensor

Weight = float | Tensor


def combine_side_by_side(combinations: Sequence[Combination]) -> list[Tensor]:
    """Return the combined logits of each, fp32 and of its main's shape; those of equal structure share one kernel call.

    Two have equal structure where main has the same shape, dtype and device, sources are as many, and plausibility, bias and
    restriction are alike. Each row gives what it gives alone.

    Args:
        combinations: What the terms of each call add up to, as `build_combination` makes them.
    """
    groups: dict[Hashable, list[int]] = {}
    for index, combination in enumerate(combinations):
        groups.setdefault(_describe_structure(combination), []).append(index)
    results: dict[int, Tensor] = {}
    for indices in groups.values():
        members = [combinations[index] for index in indices]
        combined = lvlm_guard_kernels.combine(members[0] if len(members) == 1 else _join(members))
        results |= zip(indices, combined.split([len(member.main) for member in members]), strict=True)
    return [results[index] for index in range(len(combinations))]


def _describe_structure(combination: Combination) -> Hashable:
    main = combination.main
    dtypes = tuple(source.dtype for source in combination.sources)
    return (
        main.shape[1:], main.dtype, main.device, dtypes, combination.beta,
        None if combination.bias is None else combination.bias.dtype, combination.keep is None,
    )  # fmt: skip


def _join(members: Sequence[Combination]) -> Combination:
    """Return combinations of equal structure as one with the rows of all of them."""
    first = members[0]
    sources = [torch.cat([member.sources[index] for member in members]) for index in range(len(first.sources))]
    weights = [_join_weights([member.weights[index] for member in members], members) for index in range(len(sources))]
    main_weight = _join_weights([member.main_weight for member in members], members)
    main = torch.cat([member.main for member in members])
    return Combination(main, sources, weights, main_weight, first.beta, _join_bias(members), _join_keep(members))


def _join_weights(weights: Sequence[Weight], members: Sequence[Combination]) -> Weight:
    """Return one weight for all rows: a number where all have the same, else a tensor `[rows, positions]`."""
    if all(isinstance(weight, (int, float)) and weight == weights[0] for weight in weights):
        return weights[0]
    spread = [
        torch.as_tensor(weight, dtype=torch.float32, device=member.main.device).expand(member.main.shape[:-1])
        for weight, member in zip(weights, members, strict=True)
    ]
    return torch.cat(spread)


def _join_bias(members: Sequence[Combination]) -> Tensor | None:
    spread = [member.bias.expand_as(member.main) for member in members if member.bias is not None]
    return torch.cat(spread) if spread else None


def _join_keep(members: Sequence[Combination]) -> Tensor | None:
    spread = [member.keep.expand_as(member.main) for member in members if member.keep is not None]
    return torch.cat(spread) if spread else None
