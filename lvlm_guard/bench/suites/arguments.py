"""Check the arguments of suites, which come from a command line as often as from code."""

from __future__ import annotations

from collections.abc import Collection

from lvlm_guard.errors import InputError, nearest


def one_of(suite: str, argument: str, value: object, values: Collection[str]) -> None:
    """Refuse a value that is none of the known ones.

    Raises:
        InputError: It is not; names the nearest.
    """
    if value not in values:
        raise InputError(f"{suite}: {argument}={value!r} is not possible.{nearest(str(value), values)}")


def at_least(suite: str, argument: str, value: object, least: int) -> None:
    """Refuse what is no whole number, or too small a one.

    Raises:
        InputError: It is.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{suite}: {argument}={value!r} is not possible. Give a whole number, {least} or more.")


def is_text(suite: str, argument: str, value: object) -> None:
    """Refuse what is no text.

    Raises:
        InputError: It is not.
    """
    if not isinstance(value, str):
        raise InputError(f"{suite}: {argument}={value!r} is not possible. Give a text.")


def is_switch(suite: str, argument: str, value: object) -> None:
    """Refuse what is neither True nor False.

    Raises:
        InputError: It is neither.
    """
    if not isinstance(value, bool):
        raise InputError(f"{suite}: {argument}={value!r} is not possible. Give true or false.")
