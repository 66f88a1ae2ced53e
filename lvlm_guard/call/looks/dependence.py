"""Why the prompt of main or of a branch cannot go on from a prefix, read off the plan of a call."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterator
from typing import Any

from torch import Tensor

from lvlm_guard.arithmetic.effects import format_key
from lvlm_guard.call.plan import Edit, Plan
from lvlm_guard.forward.prefixes import count_changes
from lvlm_guard.strategy.branches import MAIN
from lvlm_guard.strategy.dependence import branch_depends_on_end, edit_depends_on_end, edits_prompt

DECLARE = "which may depend on the end of the prompt: say depends_on_end=False where it does not"


def find_reason(plan: Plan, key: Hashable) -> str:
    """Return why what runs before the question depends on it, for main or for a branch; empty where it does not."""
    branch = plan.branches.get(key)
    if branch is not None and branch_depends_on_end(branch):
        built = branch.after_prefill is not None
        cause = "is built from main's prefill" if built else f"edits its images by a function, {DECLARE}"
        return f"branch {format_key(key)} {cause}"
    dependent = (name for name, _, edit in list_edits(plan, key) if edit_depends_on_end(edit))
    name = next(dependent, None)
    return "" if name is None else f"{name!r} edits or observes layers in the prompt by a function, {DECLARE}"


def list_edits(plan: Plan, key: Hashable) -> Iterator[tuple[str, int, Edit]]:
    """Yield strategy, number and edit of everything that is done inside the forwards of main or of a branch."""
    for name, edits in plan.edits.items():
        for number, edit in enumerate(edits):
            if getattr(edit, "branch", MAIN) == key:
                yield name, number, edit


def describe_kind(plan: Plan, key: Hashable) -> tuple[Any, ...]:
    """Return what can be compared of all that shapes the prefix of main or of a branch; of functions, only whether there is one."""
    branch = plan.branches.get(key)
    edits = [(name, number, _compare(edit)) for name, number, edit in list_edits(plan, key) if edits_prompt(edit)]
    return (None if branch is None else _compare(branch), *edits)


def _compare(value: Any) -> tuple[Any, ...]:
    return (type(value), *(_compare_field(getattr(value, each.name)) for each in dataclasses.fields(value)))


def _compare_field(value: Any) -> Any:
    """Return what tells a value from another: of functions nothing, of tensors which one it is, of values their fields."""
    if callable(value):
        return True
    if isinstance(value, Tensor):
        return _Unchanged(value)
    return _compare(value) if dataclasses.is_dataclass(value) else value


class _Unchanged:
    """A tensor that equals views of the same numbers alone, as long as nothing is written into them; it keeps their memory.

    Writes into a tensor of inference mode are not counted, so it equals nothing.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self._place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
        self._writes = count_changes(tensor)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Unchanged) or self._tensor.is_inference():
            return False
        return (self._place, self._writes) == (other._place, other._writes)

    __hash__ = object.__hash__
