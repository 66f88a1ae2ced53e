"""A model as it can be pickled: without the hooks that generate has left on it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from lvlm_guard.errors import InputError
from lvlm_guard.forward.installations import HOOKS

CAPTURING = "transformers.utils.output_capturing"
"""Where transformers has functions inside functions, which it hooks into a model that returned inner states, and leaves there."""
IS_CAPTURING = "_output_capturing_hooks_installed"
"""How a model of transformers notes that they are there; without it they are put on again when they are needed."""
NAMELESS = "<"  # as in `<locals>` and `<lambda>`


def prepare_for_pickle(model: Any) -> Any:
    """Return the model, or a copy on the same weights without transformers' own hooks where it has some.

    Raises:
        InputError: A hook or a forward of somebody else cannot be pickled.
    """
    if any(_is_of_transformers(hook) for part in model.modules() for hook in part._forward_hooks.values()):  # noqa: SLF001
        weights = (*model.parameters(), *model.buffers())
        model = copy.deepcopy(model, {id(weight): weight for weight in weights})
        for part in model.modules():
            _take_off(part)
    for name, part in model.named_modules():
        _check(name, part)
    return model


def _is_of_transformers(hook: object) -> bool:
    return getattr(hook, "__module__", None) == CAPTURING


def _take_off(part: nn.Module) -> None:
    vars(part).pop(IS_CAPTURING, None)
    for name, notes in HOOKS.items():
        for key in [key for key, hook in vars(part)[name].items() if _is_of_transformers(hook)]:
            for record in (name, *notes):
                vars(part)[record].pop(key, None)


def _check(name: str, part: nn.Module) -> None:
    for function in _list_functions(vars(part)):
        if NAMELESS in getattr(function, "__qualname__", ""):
            raise InputError(
                f"This guard cannot be pickled: {function.__qualname__}, which stands on {name or type(part).__name__} of the model, is "
                "a function that no name leads to. Take it off, or pickle the stack alone and save the model with save_pretrained."
            )


def _list_functions(state: Mapping[str, Any]) -> Iterator[Any]:
    for name in HOOKS:
        yield from state[name].values()
    yield from (state[name] for name in ("forward", "generate") if name in state)
