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
    return weights_digest(model), *surroundings(model).values()


def weights_digest(model: nn.Module) -> str:
    """Return 32 hexadecimal digits that change with any parameter or buffer; made on the device that holds them.

    The bits of each tensor, read as integers, are summed along its first dimension, and the sums hashed with its name.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, torch.Tensor):
            continue
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        for part in _plain_parts(tensor.detach()):
            digest.update(_sum_bits(part).cpu().numpy().tobytes())
    return digest.hexdigest()


def _plain_parts(tensor: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors that hold the numbers: inner ones of quantised weights; none where the numbers lie elsewhere."""
    if hasattr(tensor, "__tensor_flatten__"):
        for name in tensor.__tensor_flatten__()[0]:
            yield from _plain_parts(getattr(tensor, name))
    elif not tensor.is_meta:
        yield tensor


def _sum_bits(tensor: torch.Tensor) -> torch.Tensor:
    """Return the sums of a tensor's bits along its first dimension; those of a vector or a number as they are."""
    bits = tensor.contiguous().reshape(-1).view(INTEGERS[min(tensor.element_size(), 8)])
    return bits.reshape(len(tensor), -1).sum(0, dtype=torch.int64) if tensor.ndim > 1 and len(tensor) else bits


INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Types of integers by their size in bytes."""


def surroundings(model: nn.Module) -> dict[str, Any]:
    """Return what else a guarded call must leave as it was, by what it is called in a message."""
    return {
        "attributes that shadow methods": [sorted(set(vars(part)) & INSTANCE) for part in model.modules()],
        "hooks": [
            (len(part._forward_hooks), len(part._forward_pre_hooks))  # noqa: SLF001 - torch offers no other way to count
            for part in model.modules()
        ],
        "attention implementation": [
            name
            for part in model.modules()
            if (name := getattr(getattr(part, "config", None), "_attn_implementation", None)) is not None
        ],
        "mode": [part.training for part in model.modules()],
        "modules": [(name, type(part).__name__) for name, part in model.named_modules()],
    }


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
