"""One attention function for every decoder: the model's own, and edited queries computed again on top of it."""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lvlm_guard import anatomy
from lvlm_guard.errors import ModelRefused
from lvlm_guard.forward.installations import LOCK
from lvlm_guard.forward.interventions.attention_edits import AttentionCall, edit_attention
from lvlm_guard.forward.interventions.attention_maps import AttentionMaps
from lvlm_guard.forward.interventions.attention_terms import Attention, keep_added
from lvlm_guard.forward.interventions.running import running_forward
from lvlm_guard.protocols import Model

NAME = "lvlm_guard"
DELEGATES = ("eager", "sdpa")

_witnessed: ContextVar[dict[nn.Module, tuple[int, int]] | None] = ContextVar("lvlm_guard_witnessed", default=None)


class SwitchedName(str):
    """The name of `guarded_attention` in a config; knows what it stands for, and a copied config holds that instead.

    It equals what it stands for too: some models prepare masks by the name of their attention. It differs from `eager` all
    the same, because models of older versions run their own attention past the interface unless the name is not that.

    Args:
        original: Name of the attention in use before.
    """

    __slots__ = ("original", "users")

    original: str
    users: weakref.WeakSet[AttentionUser]

    @classmethod
    def of(cls, original: str) -> SwitchedName:
        """Return the name that stands for an attention."""
        name = cls(NAME)
        name.original, name.users = original, weakref.WeakSet()
        return name

    def __eq__(self, other: object) -> bool:
        return str.__eq__(self, other) is True or self.original == other

    def __ne__(self, other: object) -> bool:
        return other == "eager" or not self == other

    def __hash__(self) -> int:
        return str.__hash__(self)

    def __copy__(self) -> str:
        return self.original

    def __deepcopy__(self, _: dict[int, Any]) -> str:
        return self.original

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (self.original,)


class AttentionUser:
    """One call that needs the attention switched."""


@contextmanager
def installed(module: Model) -> Iterator[None]:
    """Switch the decoder's attention to `guarded_attention`; switched back when its last user leaves.

    Raises:
        ModelRefused: The attention in use cannot be delegated to.
    """
    configs = anatomy.attention_configs(module)
    if not configs:
        raise ModelRefused(f"{type(module).__name__} does not run its attention through transformers' interface.")
    user = AttentionUser()
    try:
        try:
            _switch(configs, user)
            yield
        finally:
            _switch_back(configs, user)
    finally:  # an interrupt may have cut the first attempt short
        _switch_back(configs, user)


def _switch(configs: list[Any], user: AttentionUser) -> None:
    with LOCK:
        for config in configs:
            _check(config)
        for config in configs:
            name = config._attn_implementation  # noqa: SLF001 - the interface's own switch
            name = name if isinstance(name, SwitchedName) else SwitchedName.of(name)
            name.users.add(user)
            config._attn_implementation = name  # noqa: SLF001 - as above


def _check(config: Any) -> None:
    name = config._attn_implementation  # noqa: SLF001 - as above
    if name != NAME and name not in DELEGATES:
        raise ModelRefused(
            f"Attention edits cannot delegate to {name!r}. Load the model with attn_implementation='sdpa' or 'eager'."
        )


def _switch_back(configs: list[Any], user: AttentionUser) -> None:
    with LOCK:
        for config in configs:
            name = config._attn_implementation  # noqa: SLF001 - as above
            if isinstance(name, SwitchedName):
                name.users.discard(user)
                if not name.users:
                    config._attn_implementation = name.original  # noqa: SLF001 - as above


def guarded_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention as transformers calls it: query `[rows, heads, queries, size]`, keys and values grouped.

    Edited queries are computed again, one block of rows at a time, without the maps of all others.
    """
    name = name_of(module.config)
    options = {"scaling": scaling, "dropout": dropout, **kwargs}
    attention = _delegate(module, name)
    output, weights = attention(module, query, key, value, attention_mask, **options)
    if (calls := _witnessed.get()) is not None:
        calls[module] = query.shape[1], key.shape[-2]
    running = running_forward()
    attending = None if running is None or running.owner is None else running.owner.attention_modules.get(module)
    if running is None or running.owner is None or attending is None:
        return output, weights
    if work := running.owner.attention_plan.get(module):
        options = options if name == "eager" else keep_added(attention, options)
        maps = AttentionMaps(module, query, key, value, attention_mask, options, name)
        call = AttentionCall(maps, running, attending.layer, attending.reach)
        output = edit_attention(call, work, output)
    return output, weights


def name_of(config: Any) -> str:
    """The attention that a config names, or named before it was switched."""
    name = config._attn_implementation  # noqa: SLF001 - as above
    return name.original if isinstance(name, SwitchedName) else str(name)


@contextmanager
def witnessed() -> Iterator[dict[nn.Module, tuple[int, int]]]:
    """Note which modules run attention in this context: their query heads and numbers of keys."""
    token = _witnessed.set({})
    try:
        calls = _witnessed.get()
        assert calls is not None
        yield calls
    finally:
        _witnessed.reset(token)


def _delegate(module: nn.Module, name: str) -> Attention:
    """The attention function that would run without a guard."""
    if name == "eager":
        return _find_eager(type(module))  # type: ignore[arg-type]  # mypy takes no class for hashable
    function: Attention = ALL_ATTENTION_FUNCTIONS["sdpa"]
    return function


@functools.cache
def _find_eager(module_class: type[nn.Module]) -> Attention:
    """The eager attention that the code of an attention module names, or else the one that lies beside it.

    Raises:
        ModelRefused: There is none, or more than one.
    """
    forward = inspect.unwrap(module_class.forward)
    names = [word for word in forward.__code__.co_names if word.endswith("eager_attention_forward")]
    candidates = [forward.__globals__.get(name) for name in names or ["eager_attention_forward"]]
    if len(candidates) != 1 or candidates[0] is None:
        raise ModelRefused(
            f"{module_class.__name__} does not show which eager attention it runs. Load the model with "
            "attn_implementation='sdpa'."
        )
    eager: Attention = candidates[0]
    return eager


AttentionInterface.register(NAME, guarded_attention)
AttentionMaskInterface.register(NAME, eager_mask)
