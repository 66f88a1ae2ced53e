"""The contents of `--model_args`: the model, the stack, and how to run them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from lvlm_guard.errors import InputError, nearest
from lvlm_guard.guard import DEFAULT_STACK
from lvlm_guard.host.parameters import problems
from lvlm_guard.host.stack import Stack

AtLeastOne = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class Settings:
    """Arguments that a harness passes to the model as text.

    Args:
        pretrained: `testbed` for the bundled model, a local folder, or a hub id.
        stack: A strategy's name, names joined by `+`, a stack file (`.toml`, `.yaml`, `.yml`), or `plain` for none.
        executor: `auto`, `batched` or `sequential`.
        device: Device to run on; by default cuda if available, else the CPU.
        dtype: `auto`, `float32`, `bfloat16` or `float16`; the bundled model is always float32.
        batch_size: Largest number of prompts per call of generate.
        max_new_tokens: Length limit of answers for tasks that do not set one.
        stop_at_blank_line: Whether a blank line that a task lists in `until` ends an answer. lmms-eval fills in a blank
            line for tasks without `until`, which would cut descriptions after the first paragraph.
        looks: Whether questions of a batch about the same pictures go on from a look at them; for lmms-eval.
    """

    pretrained: str
    stack: str = DEFAULT_STACK
    executor: str = "auto"
    device: str | None = None
    dtype: str = "auto"
    batch_size: AtLeastOne = 1
    max_new_tokens: AtLeastOne = 1024
    stop_at_blank_line: bool = False
    looks: bool = False

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any]) -> Settings:
        """Read the arguments that a harness collected from `--model_args` and its own options.

        Raises:
            InputError: An argument is unknown or of the wrong type, or `pretrained` is missing.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        for name in arguments:
            if name not in names:
                raise InputError(f"--model_args: no argument is called {name!r}.{nearest(name, names)}")
        try:
            return TypeAdapter(cls).validate_python(dict(arguments))
        except ValidationError as error:
            raise InputError(f"--model_args: {problems(error)}") from None


def read_stack(text: str) -> Stack:
    """Return the stack that a text names; `Settings.stack` describes the forms.

    Raises:
        StackError: A strategy is unknown, or a file does not contain a stack.
    """
    return Stack.of(text)
