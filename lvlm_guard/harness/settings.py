"""What stands in `--model_args`: which model, which stack, and how to run them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from lvlm_guard.errors import InputError, nearest
from lvlm_guard.guard import DEFAULT_STACK
from lvlm_guard.host.plugins import problems
from lvlm_guard.host.stack import Stack

PLAIN = "plain"
"""The stack without strategies, for the baseline of the same adapter."""

STACK_FILES = (".toml", ".yaml", ".yml")
AtLeastOne = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class Settings:
    """The arguments of the model that a harness builds from text.

    Args:
        pretrained: `testbed` for the bundled model, a local folder, or a hub id.
        stack: A strategy's name, names joined by `+`, a stack file (`.toml`, `.yaml`, `.yml`), or `plain` for none.
        executor: `auto`, `batched` or `sequential`.
        device: Where to run; cuda if there, else the CPU.
        dtype: `auto`, `float32`, `bfloat16` or `float16`; the bundled model is always float32.
        batch_size: Prompts per call of generate.
        max_new_tokens: Length limit of answers for tasks that set none.
        stop_at_blank_line: Whether a blank line that a task lists in `until` ends an answer. lmms-eval fills it in for
            tasks that say nothing, which would cut descriptions after the first paragraph.
    """

    pretrained: str
    stack: str = DEFAULT_STACK
    executor: str = "auto"
    device: str | None = None
    dtype: str = "auto"
    batch_size: AtLeastOne = 1
    max_new_tokens: AtLeastOne = 1024
    stop_at_blank_line: bool = False

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Settings:
        """Read what a harness made of `--model_args` and its own options.

        Raises:
            InputError: An unknown argument, one of the wrong type, or no `pretrained`.
        """
        known = [one.name for one in dataclasses.fields(cls)]
        for name in arguments:
            if name not in known:
                raise InputError(f"--model_args: no argument is called {name!r}.{nearest(name, known)}")
        try:
            return TypeAdapter(cls).validate_python(dict(arguments))
        except ValidationError as error:
            raise InputError(f"--model_args: {problems(error)}") from None


def read_stack(text: str) -> Stack:
    """The stack that a text names, as `Settings.stack` explains it.

    Raises:
        StackError: An unknown strategy, or a file that holds no stack.
    """
    if Path(text).suffix in STACK_FILES:
        return Stack.read(Path(text))
    return Stack.of([] if text == PLAIN else [name.strip() for name in text.split("+")])
