"""Suites from what a command line says: a name, or a name with arguments, as in `scenes:count=100,split=iid`."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from pydantic import ValidationError as PydanticError

from lvlm_guard.bench import suites as catalogue
from lvlm_guard.bench.running.manifest import Chosen
from lvlm_guard.bench.scoring.measures import Measure
from lvlm_guard.bench.suite import Suite
from lvlm_guard.deprecation import old_fields
from lvlm_guard.errors import InputError, nearest

_COMMA = re.compile(r",(?=\w+=)")
_UNFIT = re.compile(r"[^\w.+=@,-]+")


def chosen(specs: Iterable[str], parser: str | None = None) -> dict[str, Chosen]:
    """Suites by the name that they have in a run: their own, with the arguments where one suite is asked for twice.

    Args:
        specs: What was asked for.
        parser: How answers are read; each suite's first parser unless told.

    Raises:
        InputError: An unknown suite, argument or parser, or a value that cannot be used; names the nearest.
    """
    parsed = [(spec, *_parsed(spec)) for spec in specs]
    names = [name for _, name, _ in parsed]
    found: dict[str, Chosen] = {}
    for spec, name, arguments in parsed:
        label = name if names.count(name) == 1 else _UNFIT.sub("_", spec.replace(":", "@"))
        if label in found:
            raise InputError(f"{spec}: the same suite is asked for twice. Leave one out.")
        made = made_suite(name, arguments)
        found[label] = Chosen(made, checked_parser(made, parser), arguments_of(made, arguments))
    return found


def _parsed(spec: str) -> tuple[str, dict[str, str]]:
    name, _, rest = spec.partition(":")
    arguments: dict[str, str] = {}
    for piece in _COMMA.split(rest) if rest else ():
        key, equals, value = piece.partition("=")
        if not equals or key in arguments:
            raise InputError(f"{spec}: arguments are written key=value with commas between, each once, got {piece!r}.")
        arguments[key] = value
    return name, arguments


def made_suite(name: str, arguments: Mapping[str, Any]) -> Suite:
    """A suite with arguments, text turned into what each of them is.

    Raises:
        InputError: As for `chosen`.
    """
    kind = catalogue.suite(name)
    known = {field.name for field in dataclasses.fields(kind) if field.init}
    hints = typing.get_type_hints(kind)
    values = {}
    for key, value in arguments.items():
        field = old_fields(kind).get(key, key)
        if field not in known:
            raise InputError(f"{name}: there is no argument {key!r}.{nearest(key, known)}")
        values[key] = _value(name, key, value, hints[field])
    made: Suite = kind(**values)
    return made


def _value(name: str, key: str, value: Any, kind: Any) -> Any:
    try:
        return TypeAdapter(kind).validate_python(value)
    except PydanticError as error:
        raise InputError(f"{name}: {key}={value!r} is not possible: {error.errors()[0]['msg'].lower()}.") from None


def measures(suite: Suite, parser: str, data: Path | None) -> Sequence[Measure]:
    """What a suite measures; one that cannot read answers without its files is given them first.

    Raises:
        InputError: It needs files that are not there.
    """
    try:
        return suite.measures(parser)
    except InputError:
        if data is None:
            raise
    suite.load(data)
    return suite.measures(parser)


def arguments_of(suite: Suite, given: Iterable[str]) -> dict[str, Any]:
    """The given arguments of a suite as they were understood."""
    return {name: getattr(suite, name) for name in given}


def checked_parser(suite: Suite, parser: str | None) -> str:
    """A parser of the suite; its first one where none is named.

    Raises:
        InputError: It has no such parser; names the nearest.
    """
    known: Sequence[str] = suite.parsers
    if parser is not None and parser not in known:
        raise InputError(f"{suite.name}: no parser is called {parser!r}.{nearest(parser, known)}")
    return parser or known[0]
