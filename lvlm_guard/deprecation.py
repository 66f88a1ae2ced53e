"""Old names that go on working, with a `DeprecationWarning` that names the new one."""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

Class = TypeVar("Class", bound=type)


def warn_renamed(old: str, new: str, *, stacklevel: int = 3) -> None:
    """Warn that `old` is now called `new`; by default the warning points at the caller's caller."""
    warnings.warn(f"{old} is deprecated and will be removed in 1.0: use {new}.", DeprecationWarning, stacklevel)


def renamed_fields(**names: str) -> Callable[[Class], Class]:
    """Let a class take and show fields under their old names: `@renamed_fields(old="new")`."""

    def decorate(cls: Class) -> Class:
        initialise = cls.__init__  # type: ignore[misc]

        @functools.wraps(initialise)
        def accept_old_names(self: Any, *args: Any, **kwargs: Any) -> None:
            for old, new in names.items():
                if old in kwargs:
                    warn_renamed(f"{cls.__name__}({old}=...)", f"{new}=...")
                    kwargs[new] = kwargs.pop(old)
            initialise(self, *args, **kwargs)

        cls.__init__ = accept_old_names  # type: ignore[misc]
        for old, new in names.items():
            setattr(cls, old, renamed_attribute(f"{cls.__name__}.{old}", new))
        cls._renamed_fields = {**old_fields(cls), **names}  # type: ignore[attr-defined]
        return cls

    return decorate


def old_fields(cls: type) -> Mapping[str, str]:
    """Return the old names that a class takes by `renamed_fields`, and the new name of each."""
    return getattr(cls, "_renamed_fields", {})


def renamed_attribute(old: str, new: str) -> property:
    """A property that reads the attribute `new`, which may be dotted, and warns that `old` is its old name."""

    def read(self: Any) -> Any:
        warn_renamed(old, f".{new}")
        return functools.reduce(getattr, new.split("."), self)

    return property(read, doc=f"Deprecated: use `{new}`.")


def rename_value(owner: Any, field: str, names: Mapping[str, str]) -> None:
    """Replace an old value of a frozen dataclass's field by its new name; for use in `__post_init__`."""
    value = getattr(owner, field)
    if isinstance(value, str) and value in names:
        warn_renamed(f"{type(owner).__name__}({field}={value!r})", f"{field}={names[value]!r}", stacklevel=6)
        object.__setattr__(owner, field, names[value])


def moved_names(module: str, places: Mapping[str, str]) -> Callable[[str], Any]:
    """Make the `__getattr__` of a module whose names moved: old name to `package.module:name`."""

    def find(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        place, _, new = places[name].partition(":")
        warn_renamed(f"{module}.{name}", f"{place}.{new}")
        return getattr(importlib.import_module(place), new)

    return find
