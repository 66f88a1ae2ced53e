"""Packages of extras, which are imported where they are used."""

from __future__ import annotations

import importlib
from typing import Any

from lvlm_guard.errors import InputError


def import_extra(module: str, extra: str) -> Any:
    """Return the package of a module, with that module loaded.

    Args:
        module: Its dotted name; `pyarrow.parquet` returns `pyarrow`, which has its Parquet part then.
        extra: The extra that brings it.

    Raises:
        InputError: It cannot be imported; names the extra.
    """
    try:
        importlib.import_module(module)
        return importlib.import_module(module.partition(".")[0])
    except ImportError as error:
        raise InputError(f"{module} cannot be imported ({error}): pip install 'lvlm-guard[{extra}]'.") from error
