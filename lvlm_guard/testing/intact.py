"""Checks that a guarded call leaves the model, exceptions inside it and other threads alone."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lvlm_guard import anatomy
from lvlm_guard.outputs import sequences

REPEATS = 3
INSTANCE = {"forward", "generate", "_forward", "__call__"}


def fingerprint(model: nn.Module) -> tuple[Any, ...]:
    """Return weights, attributes that shadow methods, hooks, attention and mode of a model."""
    weights = hashlib.blake2b()
    for tensor in model.state_dict().values():
        weights.update(tensor.detach().float().numpy().tobytes())
    instances = [sorted(set(vars(part)) & INSTANCE) for part in model.modules()]
    hooks = [
        (len(part._forward_hooks), len(part._forward_pre_hooks))  # noqa: SLF001 - torch offers no other way to count
        for part in model.modules()
    ]
    config: Any = model.config
    return weights.hexdigest(), instances, hooks, config._attn_implementation, model.training  # noqa: SLF001 - as above


class BoomError(Exception):
    """The exception of an exploding model."""


@contextmanager
def exploding(model: nn.Module, at: int = 3) -> Iterator[None]:
    """Make the model raise in decoder forward number `at`, and expect the exception to come through."""
    calls = []

    def boom(*_: Any) -> None:
        calls.append(1)
        if len(calls) == at:
            raise BoomError

    handle = model.get_decoder().register_forward_pre_hook(boom)  # type: ignore[operator]
    try:
        yield
    except BoomError:
        return
    finally:
        handle.remove()
    raise AssertionError(f"no exception came through; {len(calls)} forwards ran, number {at} was to raise")


def shares_positions(model: nn.Module) -> bool:
    """Return whether this version keeps rope state on the module, so that not even plain generate runs in two threads."""
    return hasattr(model, "_get_initial_cache_position") and bool(anatomy.rope_owners(model))


def side_by_side(name: str, *, plain: Callable[[], Any], guarded: Callable[[], Any]) -> None:
    """Run plain and guarded calls in two threads at once; each must give what it gives alone.

    Raises:
        AssertionError: Tokens differ, or a thread died; `name` is the strategy's.
    """
    calls = {"plain": plain, "guarded": guarded}
    expected = {kind: sequences(call()) for kind, call in calls.items()}
    answers: dict[str, list[bool]] = {"plain": [], "guarded": []}

    def many(kind: str) -> None:
        answers[kind] += [torch.equal(sequences(calls[kind]()), expected[kind]) for _ in range(REPEATS)]

    threads = [threading.Thread(target=many, args=(kind,)) for kind in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(answers["plain"]), f"{name}: plain generate in another thread was disturbed"
    assert all(answers["guarded"]), f"{name}: guarded generate was disturbed by another thread"
    assert len(answers["guarded"]) == REPEATS, f"{name}: the guarded thread died"
