"""The algebra of logits: terms that add, bound or remove.

All mixes add up on top of main's logits; restrictions intersect; the strictest plausibility wins, measured on main's
raw logits inside the restriction, never on the running sum; biases add. Terms commute: their order never matters.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from torch import Tensor

from lvlm_guard.errors import InputError, quote
from lvlm_guard.strategy.branches import Branch
from lvlm_guard.strategy.edits import Readout

Source: TypeAlias = Branch | Hashable | Tensor
"""What a term weighs: a branch or its key, "main", a readout, or logits of shape [rows, vocabulary]."""


LayerDivergence: TypeAlias = Literal["jensen_shannon", "released"]
"""How the divergence of two layers' predictions is computed: as the paper has it, or as the released code does."""


class Statistics(Protocol):
    """Row statistics of the current forward, fp32 `[rows, positions]`, computed on the device and once.

    A source is main, a branch, the key of one, or logits `[..., vocab]`, whose results are `[...]`.
    """

    def logits(self, source: Source) -> Tensor:
        """Return raw logits `[rows, positions, vocab]` of a source, in fp32."""
        ...

    def log_sum_exp(self, source: Source) -> Tensor:
        """Return the logarithm of the sum of exponentials: a logit minus it is a log-probability."""
        ...

    def entropy(self, source: Source) -> Tensor:
        """Return the entropy of the next-token distribution in nats."""
        ...

    def max_probability(self, source: Source) -> Tensor:
        """Return the probability of the most likely token."""
        ...

    def divergence(self, one: Source, other: Source) -> Tensor:
        """Jensen-Shannon divergence between two next-token distributions in nats (at most ln 2)."""
        ...

    def layers(self, readout: Readout, mode: LayerDivergence = "jensen_shannon") -> Tensor:
        """Return the divergence `[layers, rows, positions]` of main from each layer of a readout.

        `jensen_shannon` is in nats; `released` is what DoLa's code computes, `KL(m | p) + KL(m | q)` with the mean `m`.
        """
        ...


Weight: TypeAlias = float | Tensor | Callable[[Statistics], Tensor]
"""The factor of a source: a number, a tensor [rows] or [rows, positions], or a function of the step's statistics."""


@dataclass(frozen=True)
class Mix:
    """Add `weight` times the logits of `source`.

    Args:
        source: `"main"`, a `Branch`, the key of one, or logits `[rows, positions, vocab]` such as a readout's.
        weight: A number; a tensor `[rows]` or `[rows, positions]`; or a function of the forward's `Statistics` that
            returns such a tensor without leaving the device. 0 is neutral.
    """

    source: Source
    weight: Weight


@dataclass(frozen=True)
class Contrast:
    """Push away from a branch: `Mix("main", weight)` and `Mix(source, -weight)`. A weight of 0 is neutral."""

    source: Source
    weight: Weight


@dataclass(frozen=True)
class Plausible:
    """Demote tokens whose probability under main is below `beta` times the best one's.

    Demoted tokens get main's logit minus 1e4: they keep main's order and can be chosen only when a later processor
    forbids every survivor. `beta` is in [0, 1]; 0 is neutral.
    Source: adaptive plausibility constraint, Li et al., arXiv 2210.15097, as used by VCD, arXiv 2311.16922, eq. 4.

    Raises:
        InputError: `beta` is outside [0, 1].
    """

    beta: float

    def __post_init__(self) -> None:
        is_number = isinstance(self.beta, (int, float)) and not isinstance(self.beta, bool)
        if not is_number or not 0.0 <= self.beta <= 1.0:
            raise InputError(f"Plausible.beta must be in [0, 1], got {quote(self.beta)}.")


@dataclass(frozen=True, eq=False)
class Restrict:
    """Remove every token outside `keep`, a bool tensor `[vocab]`, `[rows, vocab]` or `[rows, positions, vocab]`."""

    keep: Tensor


@dataclass(frozen=True, eq=False)
class Bias:
    """Add `values`, a tensor `[vocab]`, `[rows, vocab]` or `[rows, positions, vocab]`, to the surviving tokens."""

    values: Tensor


Term: TypeAlias = Mix | Contrast | Plausible | Restrict | Bias
"""What the hook `term` yields."""
