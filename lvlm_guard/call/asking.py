"""The first phase: a call as the user asked for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from lvlm_guard.call.generation import create_generation
from lvlm_guard.call.prompt_preparation import PromptPreparation
from lvlm_guard.forward.executors.executor import ExecutorName
from lvlm_guard.host.plugins import StrategyCalls
from lvlm_guard.request.requests import Request
from lvlm_guard.strategy.generation import Generation

Ask: TypeAlias = Callable[..., Any]
"""Asks the guarded model about the picture of one request: `ask(questions, row, answered, read="answers")`."""


@dataclass(frozen=True, eq=False)
class AskedCall:
    """A call as the user asked for it.

    Args:
        model: The model.
        generate: Its own generate, unguarded.
        request: Model inputs and settings.
        strategies: The strategies of the stack.
        executor: The executor asked for.
        ask: Asks the guarded model questions about the picture of one request.
        gen: The object that travels through every hook.
        preparation: What prepares its prompts.
        started: When the call began, in seconds of `time.perf_counter`.
    """

    model: Any
    generate: Callable[..., Any]
    request: Request
    strategies: StrategyCalls
    executor: ExecutorName
    ask: Ask | None
    gen: Generation
    preparation: Callable[..., PromptPreparation] = PromptPreparation
    started: float = field(default_factory=time.perf_counter)

    @property
    def may_ask(self) -> bool:
        """Whether a strategy may ask questions once the call is answered."""
        return self.ask is not None and bool(self.strategies.asking)

    def ask_strategies(self, hook: str) -> dict[str, list[Any]]:
        """Return what each strategy yields from a hook."""
        return self.strategies.call(hook, self.gen)


def build_asked_call(
    model: Any,
    generate: Callable[..., Any],
    request: Request,
    strategies: StrategyCalls,
    executor: ExecutorName,
    ask: Ask | None = None,
    preparation: Callable[..., PromptPreparation] = PromptPreparation,
) -> AskedCall:
    """Return the first phase of a call; the arguments are those of `AskedCall`."""
    return AskedCall(model, generate, request, strategies, executor, ask, create_generation(request), preparation)
