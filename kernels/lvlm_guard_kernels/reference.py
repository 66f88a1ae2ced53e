"""The definition of every operation in fp32 torch: the CPU path and the oracle of faster ones."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

DEMOTION = 1e4


def combine(
    main: Tensor,
    sources: Sequence[Tensor] = (),
    weights: Sequence[float | Tensor] = (),
    *,
    main_weight: float | Tensor = 1.0,
    beta: float = 0.0,
    bias: Tensor | None = None,
    keep: Tensor | None = None,
) -> Tensor:
    """Add up weighted logits, demote the implausible, remove what is not kept.

    Args:
        main: Raw logits `[rows, positions, vocab]` of any float dtype.
        sources: Further logits of main's shape; read only where main survives.
        weights: One per source: a number, or a tensor `[rows, positions]`.
        main_weight: Weight of main itself; 1 is neutral.
        beta: Tokens under `beta` times main's best probability become `main - 1e4`; 0 is neutral.
        bias: Broadcastable to main; added to survivors.
        keep: Bool, broadcastable to main; tokens outside become `-inf`, and plausibility is measured inside.

    Returns:
        Dense fp32 logits of main's shape. Rows of main that hold NaN stay NaN.
    """
    main = main.float()
    eligible = main if keep is None else main.masked_fill(~keep, -math.inf)
    total = main * _column(main_weight)
    for source, weight in zip(sources, weights, strict=True):
        total = total + source.float() * _column(weight)
    if bias is not None:
        total = total + bias.float()
    if beta > 0.0:
        threshold = eligible.amax(-1, keepdim=True) + math.log(beta)
        total = torch.where(eligible < threshold, eligible - DEMOTION, total)
    return torch.where(eligible == -math.inf, eligible, total)


def _column(weight: float | Tensor) -> float | Tensor:
    return weight.float().unsqueeze(-1) if isinstance(weight, Tensor) else weight


def entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of the distributions `softmax(logits)`; `[..., vocab]` in, `[...]` out, fp32."""
    return _entropy_of(logits.float().softmax(-1))


def max_probability(logits: Tensor) -> Tensor:
    """Probability of the most likely token; `[..., vocab]` in, `[...]` out, fp32."""
    return logits.float().log_softmax(-1).amax(-1).exp()


def jensen_shannon(one: Tensor, other: Tensor) -> Tensor:
    """Jensen-Shannon divergence in nats between two softmax distributions; `[..., vocab]` in, `[...]` out, fp32."""
    p, q = one.float().softmax(-1), other.float().softmax(-1)
    divergence = _entropy_of((p + q) / 2) - (_entropy_of(p) + _entropy_of(q)) / 2
    return divergence.clamp_min(0.0)


def _entropy_of(probabilities: Tensor) -> Tensor:
    terms: Tensor = torch.special.entr(probabilities)
    return terms.sum(-1)
