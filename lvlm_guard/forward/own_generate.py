"""Models whose class brings a generate of its own, as code on a hub does."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from transformers.generation import GenerationMixin

PROMPT = "inputs"
"""What some call the prompt, the first argument of transformers' generate included."""


def has_own_generate(model: object) -> bool:
    """Whether the class of a model has another generate than transformers' own."""
    generate = getattr(type(model), "generate", None)
    return callable(generate) and generate is not GenerationMixin.generate


def accept_input_ids(model: object, generate: Callable[..., Any]) -> Callable[..., Any]:
    """Return a generate that takes the prompt as `input_ids` where a class calls it `inputs` alone."""
    if not has_own_generate(model):
        return generate
    parameters = inspect.signature(generate).parameters
    if (
        PROMPT not in parameters
        or "input_ids" in parameters
        or parameters[PROMPT].kind is inspect.Parameter.VAR_KEYWORD
    ):
        return generate

    @functools.wraps(generate)
    def renamed(*args: Any, **kwargs: Any) -> Any:
        if "input_ids" in kwargs:
            kwargs[PROMPT] = kwargs.pop("input_ids")
        return generate(*args, **kwargs)

    return renamed
