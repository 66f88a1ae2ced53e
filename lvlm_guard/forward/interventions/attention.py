"""One attention function for every decoder: the model's own, and edited queries computed again on top of it."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lvlm_guard import anatomy
from lvlm_guard.errors import ModelRefused
from lvlm_guard.forward.installations import LOCK
from lvlm_guard.forward.interventions.attention_edits import AttentionCall, recompute
from lvlm_guard.forward.interventions.running import running_forward
from lvlm_guard.protocols import Model

NAME = "lvlm_guard"
DELEGATES = ("eager", "sdpa")


class SwitchedName(str):
    """The name of `guarded_attention` in a config; knows what it stands for, and a copied config holds that instead.

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
    options = {"scaling": scaling, "dropout": dropout, **kwargs}
    output, weights = _delegate(module)(module, query, key, value, attention_mask, **options)
    running, layer = running_forward(), getattr(module, "layer_idx", None)
    if running is None or running.owner is None or layer is None:
        return output, weights
    if work := running.owner.attention_plan.get(layer):
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        call = AttentionCall(module, query, key, value, attention_mask, scale, kwargs.get("softcap"), running, layer)
        for branch in running.layout.prompts:
            output = recompute(call, branch, [item for item in work if item.branch == branch], output)
    return output, weights


def _delegate(module: nn.Module) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The attention function that would run without a guard."""
    config: Any = module.config
    name = getattr(config._attn_implementation, "original", "sdpa")  # noqa: SLF001 - as above
    if name == "eager":
        eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        if eager is not None:
            return eager
    function: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS["sdpa"]
    return function


AttentionInterface.register(NAME, guarded_attention)
AttentionMaskInterface.register(NAME, eager_mask)
