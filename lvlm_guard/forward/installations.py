"""What stands on the user's own objects while a call runs: taken off by identity, and left out of every copy of them."""

from __future__ import annotations

import copy
import functools
import inspect
import threading
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

LOCK = threading.RLock()
"""Guards every change; reentrant, because what a dropped user left is taken off whenever Python collects it."""
STATE = "__getstate__"
REPLICATE = "_replicate_for_data_parallel"
"""How torch copies a module for another device: it takes over what stands on the module itself."""
PRIVATE = "_lvlm_guard"
HOOKS = {
    "_forward_hooks": ("_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    "_forward_pre_hooks": ("_forward_pre_hooks_with_kwargs",),
}
"""Where torch keeps the hooks of a module, and what it notes of them."""


class StandIn:
    """A method of one object that stands in for the object's own, for as long as it has users.

    Without users it passes on whatever it is called with, so one that could not be taken off does nothing: one that
    somebody wrapped, kept to put back, or copied.

    Args:
        owner: The object.
        name: Name of the method.
        function: What answers; called with the stand-in and the arguments.
    """

    __slots__ = ("__weakref__", "_signed", "function", "name", "owner", "saved", "users")

    def __init__(self, owner: Any, name: str, function: Callable[..., Any]) -> None:
        self.owner = owner
        self.name = name
        self.function = function
        self.saved = vars(owner).get(name)
        self.users: weakref.WeakSet[Any] = weakref.WeakSet()
        self._signed: tuple[Any, inspect.Signature] | None = None

    @property
    def original(self) -> Any:
        """What stood there before: the object's own attribute, the method of its class, or what it finds inside itself."""
        if self.saved is not None:
            return self.saved
        function = getattr(type(self.owner), self.name, None)
        if function is None:  # a wrapper that hands on what it has not, as `FullyShardedDataParallel` does
            return type(self.owner).__getattr__(self.owner, self.name)
        return types.MethodType(function, self.owner)

    @property
    def __signature__(self) -> inspect.Signature:
        original = self.original
        function = getattr(original, "__func__", original)
        if self._signed is None or self._signed[0] is not function:  # generate asks for it many times a call
            self._signed = function, inspect.signature(original)
        return self._signed[1]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Answer in place of the original."""
        if not self.users:
            return self.original(*args, **kwargs)
        return self.function(self, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.original, name)

    def __copy__(self) -> Any:
        return self.original

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self.original, memo)

    def __reduce__(self) -> tuple[Any, ...]:
        if self.saved is not None:
            return _return_it, (self.saved,)
        function = getattr(type(self.owner), self.name, None)
        return (_return_it, (self.original,)) if function is None else (types.MethodType, (function, self.owner))


class RemovableHook:
    """A hook that may be taken off while a forward runs.

    torch looks once at which hooks a module has, and again, at the call, at whether each takes keyword arguments.

    Args:
        function: The hook as torch takes it.
        count: How many arguments it takes.
    """

    def __init__(self, function: Callable[..., Any], count: int) -> None:
        self._function, self._count = function, count

    def __call__(self, *args: Any) -> Any:
        """Run the hook; one that another thread took off while this forward ran gets no keyword arguments, and does nothing."""
        return self._function(*args) if len(args) == self._count else None


class Hook(RemovableHook):
    """A hook of one call on a module.

    Args:
        user: Who registered it.
        function: As above.
        count: As above.
    """

    def __init__(self, user: object, function: Callable[..., Any], count: int) -> None:
        super().__init__(function, count)
        self.user = user


def stand_in(owner: Any, name: str, function: Callable[..., Any], user: object) -> StandIn:
    """Let `function` stand in for a method of an object, or share the stand-in that is there, until `user` leaves."""
    with LOCK:
        present = vars(owner).get(name)
        if not (isinstance(present, StandIn) and present.owner is owner):
            present = StandIn(owner, name, function)
        present.users.add(user)
        _leave_out_of_copies(owner)
        vars(owner)[name] = present
    return present


def leave(owner: Any, name: str, user: object) -> None:
    """Let a user go, wherever its stand-in lies, and take stand-ins off that have no user left."""
    with LOCK:
        present = vars(owner).get(name)
        if isinstance(present, StandIn):
            present.users.discard(user)
            if not present.users and present.owner is owner:
                _put_back(present)
        _let_copy(owner)


def register(
    module: nn.Module, user: object, function: Callable[..., Any], *, before: bool = False, with_kwargs: bool = False
) -> None:
    """Register a forward hook, or one before the forward, that `hooked` removes by its user."""
    with LOCK:
        _leave_out_of_copies(module)
        hook = Hook(user, function, 3 + with_kwargs - before)
        if before:
            module.register_forward_pre_hook(hook, with_kwargs=with_kwargs)
        else:
            module.register_forward_hook(hook, with_kwargs=with_kwargs)
            _put_first(module._forward_hooks)  # type: ignore[arg-type]  # noqa: SLF001 - an OrderedDict, whatever it is declared


def hook_with_kwargs(module: nn.Module, function: Callable[..., Any], *, before: bool = False) -> RemovableHandle:
    """Register a forward hook that takes keyword arguments, or one before the forward; belongs to no call of a guard.

    Args:
        module: The module.
        function: The hook as torch takes it.
        before: Whether it runs before the forward.

    Returns:
        What takes it off, also in the middle of a forward of another thread.
    """
    hook = RemovableHook(function, 4 - before)
    if before:
        return module.register_forward_pre_hook(hook, with_kwargs=True)
    return module.register_forward_hook(hook, with_kwargs=True)


def _put_first(hooks: OrderedDict[int, Any]) -> None:
    """Run our hooks, in their order, before others: transformers' own keep hidden states that models go on with."""
    for key in reversed([key for key, hook in hooks.items() if isinstance(hook, Hook)]):
        hooks.move_to_end(key, last=False)


@contextmanager
def hooked(root: Any, user: object) -> Iterator[None]:
    """Remove every hook that the block registers for this user on a module and all within it."""
    try:
        try:
            yield
        finally:
            _remove_hooks(root, user)
    finally:  # an interrupt may have cut the first attempt short
        _remove_hooks(root, user)


def _remove_hooks(root: Any, user: object) -> None:
    with LOCK:
        for module in root.modules():
            for name, notes in HOOKS.items():
                hooks = vars(module)[name]
                for key in [key for key, hook in hooks.items() if isinstance(hook, Hook) and hook.user is user]:
                    for record in (name, *notes):
                        vars(module)[record].pop(key, None)
            _let_copy(module)


def _put_back(present: StandIn) -> None:
    if present.saved is None:
        vars(present.owner).pop(present.name, None)
    else:
        vars(present.owner)[present.name] = present.saved


def _leave_out_of_copies(owner: Any) -> None:
    """Let copy and pickle see an object as it is without a guard; they ask the object itself for its state."""
    vars(owner).setdefault(STATE, functools.partial(_describe_state, owner))
    if hasattr(type(owner), REPLICATE):
        vars(owner).setdefault(REPLICATE, functools.partial(_replicate, owner))


def _let_copy(owner: Any) -> None:
    """Take the state off again, once nothing of ours is left on the object."""
    if STATE in vars(owner) and not any(_is_ours(value) for value in _list_values(owner)):
        del vars(owner)[STATE]
        vars(owner).pop(REPLICATE, None)


def _is_ours(value: object) -> bool:
    return isinstance(value, (StandIn, Hook))


def _list_values(owner: Any) -> Iterator[Any]:
    yield from vars(owner).values()
    for name in HOOKS:
        yield from vars(owner).get(name, {}).values()


def _describe_state(owner: Any) -> dict[str, Any]:
    """Return what copy and pickle would read of an object that no guard ever touched."""
    with LOCK:
        describe = getattr(type(owner), STATE, None)
        has_state = describe is not None and describe is not getattr(object, STATE, None)
        state = dict(describe(owner) if has_state and describe is not None else vars(owner))
        _remove_stand_ins(state)
        for name, notes in HOOKS.items():
            hook_keys = {key for key, hook in state.get(name, {}).items() if isinstance(hook, Hook)}
            for record in (name, *notes) if hook_keys else ():
                entries = state[record].items()
                state[record] = type(state[record])((key, value) for key, value in entries if key not in hook_keys)
    return state


def _replicate(owner: Any) -> Any:
    """Return torch's replica of a module, without what stands in on it; hooks are shared with the module and go with its own."""
    with LOCK:
        replica = getattr(type(owner), REPLICATE)(owner)
        _remove_stand_ins(vars(replica))
    return replica


def _remove_stand_ins(state: dict[str, Any]) -> None:
    for name, value in list(state.items()):
        if name in (STATE, REPLICATE) or name.startswith(PRIVATE):
            del state[name]
        elif isinstance(value, StandIn) and value.name == name:
            _restore(state, value)


def _restore(state: dict[str, Any], present: StandIn) -> None:
    if present.saved is None:
        del state[present.name]
    else:
        state[present.name] = present.saved


def _return_it(value: Any) -> Any:
    return value
