"""Adapters of rows, as PEFT hooks them into a model for one call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PRE_HOOKS = ("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs")


@contextmanager
def taken_off_after_errors(model: Any) -> Iterator[None]:
    """Take off the hooks of PEFT that the block leaves behind when it fails: PEFT itself takes them off only when it ends well."""
    before = {(id(part), key) for part in model.modules() for key in _list_hooks(part)}
    try:
        yield
    except BaseException:
        for part in model.modules():
            for key in [key for key in _list_hooks(part) if (id(part), key) not in before]:
                for record in PRE_HOOKS:
                    vars(part)[record].pop(key, None)
        raise


def _list_hooks(part: Any) -> list[int]:
    """Return the keys of hooks by which PEFT tells a layer the adapter of each row."""
    hooks = vars(part).get(PRE_HOOKS[0], {}).items()
    functions = {key: getattr(hook, "func", hook) for key, hook in hooks}
    return [
        key for key, function in functions.items() if (getattr(function, "__module__", "") or "").startswith("peft.")
    ]
