"""The old name of `lvlm_guard_controls`; every name of it is there."""

import importlib
import warnings
from typing import Any


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    message = "lvlm_guard_baselines is deprecated and will be removed in 1.0: use lvlm_guard_controls."
    warnings.warn(message, DeprecationWarning, stacklevel=2)
    return getattr(importlib.import_module("lvlm_guard_controls"), name)
