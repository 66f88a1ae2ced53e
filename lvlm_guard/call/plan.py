"""What the strategies of one call asked for, checked, and who asked for it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lvlm_guard.errors import InputError, StackError
from lvlm_guard.strategy.branches import MAIN, Branch, InputEdit
from lvlm_guard.strategy.edits import AttentionCapture, AttentionEdit, HiddenEdit, Readout
from lvlm_guard.strategy.loops import Revision, Search

KINDS: Mapping[str, tuple[type, ...]] = {
    "edit_inputs": (InputEdit,),
    "search": (Search,),
    "branches": (Branch,),
    "attention": (AttentionEdit, AttentionCapture),
    "hidden": (HiddenEdit,),
    "readouts": (Readout,),
    "finish": (Revision,),
}
"""The values each hook may yield."""


@dataclass
class Plan:
    """The branches of a call, each key once, its edits, probes and readouts, and who asked for them."""

    branches: dict[Hashable, Branch] = field(default_factory=dict)
    owners: dict[str, tuple[Hashable, ...]] = field(default_factory=dict)
    edits: dict[str, list[Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, call: Callable[[str], Mapping[str, list[Any]]]) -> Plan:
        """Ask every hook that says something about the forwards.

        Raises:
            InputError: A value of the wrong kind, one key for two different branches, or rows that nobody runs.
        """
        plan = cls()
        for strategy, values in checked(call, "branches").items():
            plan._add_branches(strategy, values)
        for hook in ("attention", "hidden", "readouts"):
            for strategy, values in checked(call, hook).items():
                plan.edits.setdefault(strategy, []).extend(values)
        plan._check_rows()
        return plan

    def all_of(self, kind: type | tuple[type, ...]) -> list[Any]:
        """Every edit of a kind, in the order of the stack."""
        return [edit for edits in self.edits.values() for edit in edits if isinstance(edit, kind)]

    def _add_branches(self, strategy: str, branches: Sequence[Branch]) -> None:
        for branch in branches:
            known = self.branches.setdefault(branch.key, branch)
            if _kind(known) != _kind(branch):
                raise InputError(
                    f"Two different branches share the key {branch.key!r}; put what tells them apart into it."
                )
        self.owners[strategy] = tuple(branch.key for branch in branches)

    def _check_rows(self) -> None:
        for strategy, edits in self.edits.items():
            for edit in edits:
                branch = getattr(edit, "branch", MAIN)
                if branch != MAIN and branch not in self.branches:
                    raise InputError(f"{strategy} edits branch {branch!r}, but no branch has that key.")


def checked(call: Callable[[str], Mapping[str, list[Any]]], hook: str) -> dict[str, list[Any]]:
    """The values of one hook by strategy.

    Raises:
        InputError: A value of another kind than the hook's.
        StackError: More than one search in a stack.
    """
    found = {name: list(values) for name, values in call(hook).items()}
    for name, values in found.items():
        _check_kind(f"{name}.{hook}", values, KINDS[hook])
    if hook == "search" and sum(map(len, found.values())) > 1:
        raise StackError(f"Only one strategy of a stack can search, got {', '.join(n for n, v in found.items() if v)}.")
    return found


def _check_kind(hook: str, values: Iterable[Any], kinds: tuple[type, ...]) -> None:
    for value in values:
        if not isinstance(value, kinds):
            expected = " or ".join(kind.__name__ for kind in kinds)
            raise InputError(f"{hook} must yield {expected} values, got {value!r}.")


def _kind(branch: Branch) -> tuple[Any, ...]:
    made = (branch.pixels, branch.picture, branch.features, branch.after_prefill)
    return (*(edit is None for edit in made), branch.image, branch.tokens, branch.seed, branch.inside)
