"""What the strategies of one call ask for, checked, and who asks for it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from lvlm_guard.call.terms import check_term
from lvlm_guard.errors import PluginRejected, StackError, quote
from lvlm_guard.host.parameters import describe_misfit
from lvlm_guard.strategy.branches import MAIN, Branch, InputEdit
from lvlm_guard.strategy.edits import AttentionCapture, AttentionEdit, HiddenEdit, Readout
from lvlm_guard.strategy.loops import Revision, Search
from lvlm_guard.strategy.terms import Bias, Contrast, Mix, Plausible, Restrict

KINDS: Mapping[str, tuple[type, ...]] = {
    "edit_inputs": (InputEdit,),
    "search": (Search,),
    "branches": (Branch,),
    "attention": (AttentionEdit, AttentionCapture),
    "hidden": (HiddenEdit,),
    "readouts": (Readout,),
    "terms": (Mix, Contrast, Plausible, Restrict, Bias),
    "finish": (Revision,),
}
"""The values each hook may yield."""
INNER_HOOKS = ("attention", "hidden", "readouts")

Edit: TypeAlias = AttentionEdit | AttentionCapture | HiddenEdit | Readout
"""What is done inside the layers."""
Kind = TypeVar("Kind")
CallHook: TypeAlias = Callable[[str], Mapping[str, list[Any]]]
"""A function from the name of a hook to the values of each strategy."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What runs beside and inside the forwards of a call.

    Args:
        branches: Every branch by its key, each once.
        branch_keys: Keys of the branches that each strategy asks for.
        edits: Edits, captures and readouts that each strategy asks for.
    """

    branches: Mapping[Hashable, Branch]
    branch_keys: Mapping[str, tuple[Hashable, ...]]
    edits: Mapping[str, tuple[Edit, ...]]

    def edits_of(self, kind: type[Kind]) -> list[Kind]:
        """Return every edit of a kind, in the order of the stack."""
        return [edit for edits in self.edits.values() for edit in edits if isinstance(edit, kind)]


@dataclass(frozen=True)
class Sharing:
    """Which prompts of a call went on from prefixes.

    Args:
        reasons: Why the prompt of main or of a branch ran whole, by `"main"` or its key; empty where it went on from a prefix.
        runs: Prefixes that were run for this call.
    """

    reasons: Mapping[Hashable, str]
    runs: int = 0


def build_plan(call_hook: CallHook) -> Plan:
    """Ask every hook that says something about the forwards.

    Raises:
        PluginRejected: A value of the wrong kind, one key for two different branches, or rows that nobody runs.
    """
    branches = collect_values(call_hook, "branches")
    keys = {name: tuple(branch.key for branch in values) for name, values in branches.items()}
    merged = _merge_branches(branches)
    plan = Plan(merged, keys, _merge_edits([collect_values(call_hook, hook) for hook in INNER_HOOKS]))
    _check_edited_branches(plan)
    return plan


def outline_plan(plan: Plan) -> str:
    """Return a digest of what can be compared of a plan: its branches, and where and when it edits and reads."""
    branches = [(repr(key), outline_branch(branch)) for key, branch in plan.branches.items()]
    edits = [(name, [_outline_edit(edit) for edit in edits]) for name, edits in plan.edits.items()]
    return hashlib.blake2b(repr((branches, edits)).encode(), digest_size=16).hexdigest()


def _outline_edit(edit: Edit) -> tuple[Any, ...]:
    fields = ("site", "layers", "positions", "branch", "when", "tower", "final_norm")
    return (type(edit).__name__, *(getattr(edit, name, None) for name in fields))


def collect_values(call_hook: CallHook, hook: str) -> dict[str, list[Any]]:
    """Return the values of one hook by strategy.

    Raises:
        PluginRejected: A value of another kind than the hook's, or with a field of another kind than its own.
        StackError: More than one search in a stack.
    """
    values = {name: list(of_strategy) for name, of_strategy in call_hook(hook).items()}
    for name, of_strategy in values.items():
        for value in of_strategy:
            check_value(f"{name}.{hook}", value, KINDS[hook])
    if hook == "search" and sum(map(len, values.values())) > 1:
        searching = ", ".join(name for name, of_strategy in values.items() if of_strategy)
        raise StackError(f"Only one strategy of a stack can search, got {searching}.")
    return values


def check_value(hook: str, value: Any, kinds: tuple[type, ...]) -> None:
    """Raise `PluginRejected` if a value from a hook is of another kind, or if a field of it is."""
    kind = next((kind for kind in kinds if isinstance(value, kind)), None)
    if kind is None:
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise PluginRejected(f"{hook} must yield {expected} values, got {quote(value)}.")
    misfit = check_term(value) if kind in KINDS["terms"] else describe_misfit(kind, value)
    if misfit is not None:
        raise PluginRejected(f"{hook} yields a {kind.__name__} that cannot be used: {misfit}")


def _merge_branches(by_strategy: Mapping[str, list[Branch]]) -> dict[Hashable, Branch]:
    """Return each branch once, the first of its key."""
    merged: dict[Hashable, Branch] = {}
    for strategy, branches in by_strategy.items():
        for branch in branches:
            if not _is_hashable(branch.key):
                raise PluginRejected(
                    f"{strategy}.branches: the key {quote(branch.key)} cannot be hashed: use text, numbers and tuples."
                )
            if outline_branch(merged.setdefault(branch.key, branch)) != outline_branch(branch):
                raise PluginRejected(
                    f"{strategy}.branches: two different branches share the key {quote(branch.key)}; put what tells them "
                    "apart into it."
                )
    return merged


def _merge_edits(by_hook: Iterable[Mapping[str, list[Any]]]) -> dict[str, tuple[Edit, ...]]:
    """Return the edits of each strategy, hook after hook."""
    merged: dict[str, tuple[Edit, ...]] = {}
    for by_strategy in by_hook:
        for strategy, edits in by_strategy.items():
            merged[strategy] = (*merged.get(strategy, ()), *edits)
    return merged


def outline_branch(branch: Branch) -> tuple[Any, ...]:
    """Return what can be compared of a branch; of functions, only whether there is one."""
    functions = (branch.pixels, branch.picture, branch.features, branch.after_prefill)
    return (*(function is None for function in functions), branch.image, branch.tokens, branch.seed, branch.inside)


def _is_hashable(key: object) -> bool:
    try:
        hash(key)
    except TypeError:
        return False
    return True


def _check_edited_branches(plan: Plan) -> None:
    for strategy, edits in plan.edits.items():
        for edit in edits:
            branch = getattr(edit, "branch", MAIN)
            if branch != MAIN and (not _is_hashable(branch) or branch not in plan.branches):
                raise PluginRejected(
                    f"{strategy} edits branch {quote(branch)}, but no branch has that key: yield it in the branches hook."
                )
