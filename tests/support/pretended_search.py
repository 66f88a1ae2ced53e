"""A search without a model: stacks answer planted questions by rules of their own, and say what they cost."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import planted
from planted import CAPTION, Planted, Seen

from lvlm_guard.bench.items import LEVELS, AnsweredItem
from lvlm_guard.bench.running.manifest import Gathered, SuiteChoice
from lvlm_guard.bench.running.picture_check import LeftOut
from lvlm_guard.host.stack import Stack
from lvlm_guard.tuning.answering import StackReply
from lvlm_guard.tuning.candidates import SearchSpace, find_space
from lvlm_guard.tuning.sampling import Sampler
from lvlm_guard.tuning.searching import Searcher
from lvlm_guard.tuning.splits import Split

Rule = Callable[[Any, Seen], float]
"""From a strategy and what the model has of an item to the margin of the answer."""

RULES: Mapping[str, Rule] = {
    "vdd": lambda strategy, seen: seen.plain + 0.5 * min(strategy.alpha, 2.0) * seen.evidence,
    "vcd": lambda _, seen: -seen.habit,
    "dola": lambda _, seen: -1.0,
    "sla": lambda _, seen: seen.plain,
}
"""Of strategies: sound, against habit, always no, and nothing."""


class _Tokenizer:
    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": list(range(len(text.split())))}


@functools.cache
def see_items() -> Mapping[str, Seen]:
    """What the model has of every planted item, by id."""
    return {seen.item.id: seen for seen in planted.see(Planted().load(None).items)}


def split_planted() -> Split:
    """All planted items."""
    items = Planted().load(None).items
    content = Gathered({"planted": items}, {"planted": ()}, {"planted": LeftOut(0, {})})
    return Split("planted", SuiteChoice(Planted(), "ours"), content)


@dataclass
class PretendedCache:
    """Answers by rule.

    Args:
        stop_after: Stacks that are answered before somebody presses Ctrl-C; None is never.
        calls: Stacks and labels, in their order.
    """

    stop_after: int | None = None
    calls: list[tuple[tuple[str, ...], str]] = field(default_factory=list)
    subject: Any = field(
        default_factory=lambda: SimpleNamespace(
            model=SimpleNamespace(config=SimpleNamespace()), processor=_Tokenizer(), name="planted", data=None
        )
    )

    def answer(self, stack: Stack, part: Split, label: str) -> StackReply:
        """Answer a part of the items."""
        if self.stop_after is not None and len(self.calls) >= self.stop_after:
            raise KeyboardInterrupt
        self.calls.append((stack.names, label))
        answers = [self._answer(stack, see_items()[item.id]) for item in part.items]
        return StackReply(answers, [describe_cost(stack, len(answers))])

    def _answer(self, stack: Stack, seen: Seen) -> AnsweredItem:
        if seen.item.kind == CAPTION:
            return AnsweredItem(seen.item, seen.caption, 2)
        value = seen.plain + sum(RULES[name](strategy, seen) - seen.plain for name, strategy in _rules(stack))
        return AnsweredItem(seen.item, "Yes" if value > 0 else "No", 2, value)


def _rules(stack: Stack) -> Sequence[tuple[str, Any]]:
    """The strategies of a stack by name; a gate lets everything through."""
    members: list[Any] = [
        inner
        for strategy in stack
        for inner in (Stack.of(list(strategy.strategies)) if hasattr(strategy, "strategies") else (strategy,))
    ]
    return [(member.name, member) for member in members]


def describe_cost(stack: Stack, rows: int) -> dict[str, Any]:
    """A batch of two tokens a row, in which every contrastive strategy runs a branch."""
    branches = sum(name in ("vdd", "vcd") for name, _ in _rules(stack))
    return {
        "batch": 0, "rows": rows, "tokens": 2 * rows, "seconds": 1.0 + branches, "prefill": 1.0 + branches, "decode": 1.0,
        "rows_per_forward": 1 + branches, "executor": "batched",
    }  # fmt: skip


def build_searcher(
    cache: PretendedCache, names: Sequence[str] = ("vdd", "vcd", "dola", "sla"), budget: float = 2.5, seed: int = 0
) -> Searcher:
    """A search over strategies with rules."""
    space: SearchSpace = find_space(names)
    return Searcher(cache, split_planted(), LEVELS, budget, Sampler(space, seed))  # type: ignore[arg-type]


SETTINGS = {"of": "a pretended search"}
