"""Decodes that transformers compiles by itself: under a static cache, on accelerators.

It compiles the call of the whole model, where a guarded forward would break the graph. A guarded decode therefore has it leave
that alone, and compiles the forward behind its own, with the same settings.
"""

from __future__ import annotations

import functools
import json
import weakref
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from transformers import CompileConfig

from lvlm_guard.forward.executors.executor import Run
from lvlm_guard.forward.interventions.compiled import is_compiled
from lvlm_guard.forward.preparation import PreparedDecode

_compiled: weakref.WeakKeyDictionary[Callable[..., Any], dict[str, Callable[..., Any]]] = weakref.WeakKeyDictionary()


def compiles_by_itself(main: PreparedDecode) -> bool:
    """Whether generate would compile the decode of main, which nobody else has compiled."""
    decide = getattr(main.module, "_valid_auto_compile_criteria", None)  # nothing public tells
    return callable(decide) and bool(decide(main.kwargs, main.settings)) and not is_compiled(main.module)


def compile_forward(main: PreparedDecode, forward: Run) -> Run:
    """The forward of the module that decodes, compiled as generate would; itself where it is no method of the module's class.

    Compiled functions are kept by class, so that a second call finds its graphs and no model is held.
    """
    if not isinstance(forward, MethodType) or forward.__self__ is not main.module:
        return forward
    options = (main.settings.compile_config or CompileConfig()).to_dict()
    by_options = _compiled.setdefault(forward.__func__, {})
    key = json.dumps(options, sort_keys=True, default=repr)
    if key not in by_options:
        by_options[key] = torch.compile(forward.__func__, **options)
    return functools.partial(_run, MethodType(by_options[key], main.module))


def _run(compiled: Run, **inputs: Any) -> Any:
    """Run a compiled forward; its logits are copied, because a graph of the device writes the next ones to the same place."""
    output = compiled(**inputs)
    output["logits"] = output.logits.clone()
    return output
