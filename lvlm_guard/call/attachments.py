"""Guards attached to a model: who answers its `generate`, and how each of them leaves, in whatever order."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from lvlm_guard.forward.installations import StandIn, leave, stand_in
from lvlm_guard.forward.own_generate import accept_input_ids
from lvlm_guard.forward.wrapper import run_apart

Answer = Callable[[Any, tuple[Any, ...], Mapping[str, Any]], Any]
"""Answers a call of generate: the model's own generate, positional and named arguments."""
_guarded_models: ContextVar[tuple[Any, ...]] = ContextVar("lvlm_guard_guarded_models", default=())
_numbers = itertools.count()


class Attachment:
    """One guard on one model, from the begin of a block to its end.

    Args:
        answer: Answers calls of the model's generate, unless a younger attachment stands.
    """

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.number = next(_numbers)
        self.is_open = True


@contextmanager
def attached(model: Any, answer: Answer) -> Iterator[None]:
    """Let `answer` answer every call of the model's generate, in any thread, until the end of the block."""
    attachment = Attachment(answer)
    try:
        try:
            stand_in(model, "generate", _answer, attachment)
            yield
        finally:
            _detach(model, attachment)
    finally:  # an interrupt may have cut the first attempt short
        _detach(model, attachment)


def _detach(model: Any, attachment: Attachment) -> None:
    attachment.is_open = False
    leave(model, "generate", attachment)


def plain_generate(model: Any) -> Any:
    """The model's own generate, also while guards are attached to it."""
    generate = model.generate
    return accept_input_ids(model, generate.original if isinstance(generate, StandIn) else generate)


def run_guarded_call(model: Any, function: Callable[..., Any], *args: Any) -> Any:
    """Run a guarded call of a model, in which guards attached to it leave its generate alone."""
    return run_apart(_run_as_guarded, model, function, *args)


def _run_as_guarded(model: Any, function: Callable[..., Any], *args: Any) -> Any:
    token = _guarded_models.set((*_guarded_models.get(), model))
    try:
        return function(*args)
    finally:
        _guarded_models.reset(token)


def _answer(wrapper: StandIn, *args: Any, **kwargs: Any) -> Any:
    """Let the youngest attachment answer; calls within a guarded call of the same model are part of it."""
    standing = [attachment for attachment in wrapper.users if attachment.is_open]
    if not standing or any(model is wrapper.owner for model in _guarded_models.get()):
        return wrapper.original(*args, **kwargs)
    youngest = max(standing, key=lambda attachment: attachment.number)
    return youngest.answer(accept_input_ids(wrapper.owner, wrapper.original), args, kwargs)
