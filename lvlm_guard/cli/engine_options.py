"""Options that say what runs the model: transformers or vLLM."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import typer

from lvlm_guard.engines.vllm import check_version
from lvlm_guard.errors import InputError, quote

EngineName = Literal["transformers", "vllm"]
Engine = Annotated[
    EngineName, typer.Option(help="What runs the model: transformers, or vLLM by groups of requests in step.")
]
EngineOptions = Annotated[
    str | None, typer.Option(metavar="JSON", help="Further options of vllm.LLM, as a JSON object; for vLLM alone.")
]


def check_engine(engine: EngineName, options: str | None, *, is_placed: bool) -> None:
    """Refuse options of vLLM where it does not run, and where it does, a place of the model, or another version than groups work with.

    Raises:
        InputError: So it is.
    """
    if engine != "vllm":
        if options is not None:
            raise InputError("--engine-options are those of vllm.LLM: add --engine vllm, or leave them out.")
        return
    if is_placed:
        raise InputError(
            "vLLM places models itself: leave --device, --device-map, --quantize and --tp out with --engine vllm; --engine-options has "
            "its own."
        )
    check_version()


def read_engine_options(text: str | None) -> dict[str, Any]:
    """Return the options of an engine that the command line gives.

    Raises:
        InputError: The text is no JSON object.
    """
    try:
        options = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise InputError(f"--engine-options is a JSON object, got {quote(text)}: {error}.") from None
    if not isinstance(options, dict):
        raise InputError(f"--engine-options is a JSON object, got {quote(text)}.")
    return options
