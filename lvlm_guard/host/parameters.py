"""Parameters of strategies, checked strictly: no text and no bool is a number, and no whole number is too long to be one."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import GetCoreSchemaHandler, TypeAdapter
from pydantic import ValidationError as PydanticError
from pydantic.errors import PydanticUndefinedAnnotation, PydanticUserError

from lvlm_guard.errors import GuardError, InputError, PluginRejected, describe_error, quote
from lvlm_guard.strategy.names import strategy_name

STRICT = ("bool", "float", "int", "str")
DEEPEST = 20
MOST_VALUES = 10_000
MOST_PROBLEMS = 5


def validated(strategy: object, allow: Collection[str] = ()) -> object:
    """Return a strategy whose field values are checked against, and converted to, its own annotations.

    Raises:
        PluginRejected: With each wrong parameter, or an annotation that cannot be checked.
    """
    fields = [field for field in dataclasses.fields(strategy) if field.init]  # type: ignore[arg-type]
    name = strategy_name(strategy)
    missing = [field.name for field in fields if not hasattr(strategy, field.name)]
    if missing:
        raise PluginRejected(f"{name}: the instance has no {missing[0]!r}; build it with every parameter.")
    try:
        return build(type(strategy), {field.name: getattr(strategy, field.name) for field in fields}, allow)
    except PydanticError as error:
        raise PluginRejected(f"{name}: {problems(error)}") from None


def build(
    strategy: type, parameters: Mapping[str, Any], allow: Collection[str] = (), folder: Path | None = None
) -> object:
    """Build a strategy of checked parameters; raises pydantic's error for wrong values.

    Args:
        strategy: The class.
        parameters: By name; left out ones have their defaults.
        allow: Import paths of functions that parameters may name.
        folder: Where relative paths of files are looked for first.

    Raises:
        PluginRejected: An annotation cannot be checked, or the class fails to be built of values that fit it.
        InputError: Values that are nested too deeply, or text that cannot be written.
    """
    check_values(dict(parameters))
    name = strategy_name(strategy)
    try:
        return strict_validator(strategy).validate_python(dict(parameters), context={"allow": allow, "folder": folder})
    except (GuardError, PydanticError):
        raise
    except (PydanticUndefinedAnnotation, PydanticUserError) as error:
        raise PluginRejected(f"{name}: an annotation cannot be checked: {error.message}") from None
    except Exception as error:  # the author's own class
        raise PluginRejected(f"{name} cannot be built: {describe_error(error)}") from error


@functools.lru_cache(maxsize=256)
def strict_validator(kind: type) -> TypeAdapter[Any]:
    """Return the validator of a dataclass's fields, which converts whole numbers to floats and lists to tuples only."""
    annotation: Any = Annotated[kind, _Strict()]
    return TypeAdapter(annotation)


class _Strict:
    """Annotation that makes the schema of its type strict, all the way down."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> Any:
        return _make_strict(handler.resolve_ref_schema(handler(source)))


def _make_strict(schema: Any) -> Any:
    """Return a core schema in which numbers, bools and text are taken as they are."""
    if isinstance(schema, list):
        return [_make_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    parts = {key: part if key in ("default", "metadata") else _make_strict(part) for key, part in schema.items()}
    bounds = {"allow_inf_nan": False} if schema.get("type") == "float" else {}
    return {**bounds, **parts, "strict": True} if schema.get("type") in STRICT else parts


def problems(error: PydanticError) -> str:
    """Put a validation error into one line: each parameter, what is wrong, and its value."""
    rows = [
        f"{'.'.join(map(str, row['loc'])) or 'value'}: {_begin_small(row['msg'])}, got {quote(row['input'])}"
        for row in error.errors(include_url=False)
    ]
    more = [f"and {len(rows) - MOST_PROBLEMS} more"] if len(rows) > MOST_PROBLEMS else []
    return "; ".join([*rows[:MOST_PROBLEMS], *more])


def _begin_small(message: str) -> str:
    message = message.removeprefix("Value error, ").removesuffix(".")
    return message[:1].lower() + message[1:]


def describe_misfit(kind: type, value: Any) -> str | None:
    """Return what is wrong with the fields of a dataclass's instance by its annotations, or None."""
    fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(kind) if field.init}
    try:
        check_values(fields)
        strict_validator(kind).validate_python(fields)
    except PydanticError as error:
        return problems(error)
    except InputError as error:
        return str(error)
    return None


def check_values(value: object) -> None:
    """Check that lists and mappings end somewhere, and that text can be written.

    Raises:
        InputError: They are nested too deeply, hold themselves or too much, cannot be read, or text has half a character or a NUL.
    """
    try:
        _check_values(value)
    except InputError:
        raise
    except Exception as error:  # lists and dicts of a class of the user's may raise anything
        raise InputError(f"The values cannot be read: {describe_error(error)}.") from error


def _check_values(value: object) -> None:
    pending, count = [(value, 0)], 0
    while pending:
        current, depth = pending.pop()
        count += 1
        if depth > DEEPEST or count + len(pending) > MOST_VALUES:
            raise InputError(
                f"The values are nested deeper than {DEEPEST} or are more than {MOST_VALUES:,}: do they hold themselves?"
            )
        if isinstance(current, str):
            _check_text(current)
        elif isinstance(current, Mapping):
            pending += [(part, depth + 1) for pair in current.items() for part in pair]
        elif isinstance(current, (list, tuple)):
            pending += [(part, depth + 1) for part in current]


def _check_text(text: str) -> None:
    if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise InputError(f"{quote(text)} holds a NUL or half a character, which no text has: leave it out.")
