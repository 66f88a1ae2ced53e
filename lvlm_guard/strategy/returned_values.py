"""What functions of the user's return, checked against the type that a strategy needs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from pydantic import TypeAdapter

from lvlm_guard.errors import InputError, quote


def check_returned(value: Any, kind: Any, needs: str) -> Any:
    """Return what a function of the user's returned as plain values of a type.

    Args:
        value: What it returned. Lists, arrays and tensors become tuples, their elements Python numbers.
        kind: The type, as pydantic writes it, of tuples, numbers and text: `tuple[float, ...]`. Nothing is converted: the
            text `"1"` is no number, and a dict or set has no order.
        needs: How the error begins: `"'mine' needs a score for each row: correct the scorer"`.

    Raises:
        InputError: It is of another type, or text in it cannot be written as UTF-8.
    """
    try:
        return TypeAdapter(kind).validate_python(_to_plain(value), strict=True)
    except Exception as error:  # a value of a class of the user's may raise anything
        raise InputError(f"{needs}, which returned {quote(value)}.") from error


def _to_plain(value: Any) -> Any:
    """Return arrays, tensors, series and collections with an order as tuples."""
    if hasattr(value, "tolist"):
        return _to_plain(value.tolist())
    if isinstance(value, str):
        value.encode()
    if isinstance(value, (str, bytes, bytearray, Mapping, AbstractSet)) or not isinstance(value, Collection):
        return value
    return tuple(_to_plain(item) for item in value)
