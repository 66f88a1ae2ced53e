"""A gate: other strategies act only where the model itself is unsure of the next token."""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor

from lvlm_guard import (
    Bias,
    Branch,
    Contrast,
    Generation,
    Mix,
    Plausible,
    Readout,
    Restrict,
    Stack,
    StackError,
    Statistics,
    Term,
    Weight,
    hookimpl,
)
from lvlm_guard.fields import Strength

GATEABLE = frozenset({"start", "branches", "readouts", "terms"})
HOOKS = (*GATEABLE, "edit_inputs", "attention", "hidden", "search", "observe", "finish")


@dataclass(frozen=True)
class Gated:
    """Act where main is unsure: `z + sum of 1[m < margin] terms`, `m` the best minus the second-best logit of main.

    What the model is sure of stays as it is; the margin decides at every token of every row. Weights, biases and restrictions are gated. A
    plausibility cut is not, since it holds for all rows alike: it never removes main's best token, so a greedy choice
    is main's where the gate is shut. Only strategies that act by their terms can be gated: what they edit in the
    prompt or in the layers of main would act before the margin is known. `margin = 0` is neutral.
    """

    name: ClassVar[str] = "gated"
    family: ClassVar[str] = "contrastive"
    paper: ClassVar[str] = "none"
    cost: ClassVar[str] = "that of the gated strategies"
    neutral: ClassVar[dict[str, float]] = {"margin": 0.0}

    strategies: Annotated[
        tuple[dict[str, Any], ...],
        Field(min_length=1, description="entries of a stack, each with name and params"),
    ] = field(hash=False)
    margin: Annotated[Strength, Field(description="margin below which they act, in nats; 0 is never")] = 2.0

    def __post_init__(self) -> None:
        """Build the strategies, and refuse those that cannot be gated."""
        for strategy in self._members:
            hooks = [hook for hook in HOOKS if hasattr(getattr(strategy, hook, None), "lvlm_guard_impl")]
            unfit = sorted(set(hooks) - GATEABLE)
            if unfit or "terms" not in hooks:
                name = getattr(strategy, "name", type(strategy).__name__)
                reason = f"acts by {unfit[0]}, before the margin is known" if unfit else "has no terms"
                raise StackError(
                    f"'gated' needs strategies that act by their terms: put {name} into the stack itself, since it {reason}."
                )

    @functools.cached_property
    def _members(self) -> tuple[Any, ...]:
        return Stack.of([dict(entry) for entry in self.strategies]).strategies

    @hookimpl
    def start(self, gen: Generation) -> None:
        """Let the strategies refuse."""
        for strategy in self._having("start"):
            strategy.start(gen)

    @hookimpl
    def branches(self, gen: Generation) -> Iterable[Branch]:
        """Add the branches of the strategies."""
        for strategy in self._having("branches"):
            yield from strategy.branches(gen) or ()

    @hookimpl
    def readouts(self, gen: Generation) -> Iterable[Readout]:
        """Read the layers that the strategies read."""
        for strategy in self._having("readouts"):
            yield from strategy.readouts(gen) or ()

    @hookimpl
    def terms(self, gen: Generation) -> Iterable[Term]:
        """Gate the terms of the strategies."""
        best = gen.logits().float().topk(2, dim=-1).values
        is_open = best[..., 0] - best[..., 1] < self.margin
        for strategy in self._having("terms"):
            for term in strategy.terms(gen) or ():
                yield _gate(term, is_open)

    def _having(self, hook: str) -> list[Any]:
        return [strategy for strategy in self._members if hasattr(getattr(strategy, hook, None), "lvlm_guard_impl")]


def _gate(term: Term, is_open: Tensor) -> Term:
    """Return a term that acts where a gate `[rows, positions]` is open."""
    if isinstance(term, (Mix, Contrast)):
        return replace(term, weight=_gate_weight(term.weight, is_open))
    if isinstance(term, Bias):
        return Bias(_spread(term.values, is_open) * is_open[..., None])
    if isinstance(term, Restrict):
        return Restrict(_spread(term.keep.bool(), is_open) | ~is_open[..., None])
    assert isinstance(term, Plausible)
    return term


def _gate_weight(weight: Weight, is_open: Tensor) -> Tensor | Callable[[Statistics], Tensor]:
    if callable(weight):
        return lambda statistics: _gate_number(weight(statistics), is_open)
    return _gate_number(weight, is_open)


def _gate_number(weight: float | Tensor, is_open: Tensor) -> Tensor:
    """Return a number, or one per row, or one per row and position, as one per row and position, 0 where the gate is shut."""
    per_row = isinstance(weight, Tensor) and weight.dim() == 1
    values = weight[:, None] if per_row and isinstance(weight, Tensor) else weight
    return is_open * values


def _spread(values: Tensor, is_open: Tensor) -> Tensor:
    """Return `[vocab]`, `[rows, vocab]` or `[rows, positions, vocab]` so that a gate `[rows, positions, 1]` fits it."""
    two = 2
    return values[:, None] if values.dim() == two and is_open.dim() == two else values
