"""Build suites from the words of a command line: a name, or a name with arguments, as in `scenes:count=100,split=iid`."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from pydantic import ValidationError as PydanticError

from lvlm_guard.bench.catalogue import find_suite
from lvlm_guard.bench.running.manifest import SuiteChoice
from lvlm_guard.bench.scoring.measures import Measure
from lvlm_guard.bench.suite import Suite
from lvlm_guard.deprecation import moved_names, old_fields
from lvlm_guard.errors import InputError, nearest

_COMMA = re.compile(r",(?=\w+=)")
_UNFIT = re.compile(r"[^\w.+=@,-]+")


def choose_suites(specs: Iterable[str], parser: str | None = None) -> dict[str, SuiteChoice]:
    """Build suites by their name in a run: their own, with the arguments where a suite occurs twice.

    Args:
        specs: Names of suites, with or without arguments.
        parser: How answers are read; None is each suite's first parser.

    Raises:
        InputError: An unknown suite, argument or parser, or a value that cannot be used; names the nearest.
    """
    parsed = [(spec, *_parsed(spec)) for spec in specs]
    names = [name for _, name, _ in parsed]
    choices: dict[str, SuiteChoice] = {}
    for spec, name, arguments in parsed:
        label = name if names.count(name) == 1 else _UNFIT.sub("_", spec.replace(":", "@"))
        if label in choices:
            raise InputError(f"{spec}: the same suite is named twice. Leave one out.")
        built = build_suite(name, arguments)
        choices[label] = SuiteChoice(built, check_parser(built, parser), read_arguments(built, arguments))
    return choices


def _parsed(spec: str) -> tuple[str, dict[str, str]]:
    name, _, rest = spec.partition(":")
    arguments: dict[str, str] = {}
    for piece in _COMMA.split(rest) if rest else ():
        key, equals, value = piece.partition("=")
        if not equals or key in arguments:
            raise InputError(f"{spec}: arguments are written key=value with commas between, each once, got {piece!r}.")
        arguments[key] = value
    return name, arguments


def build_suite(name: str, arguments: Mapping[str, Any]) -> Suite:
    """Build a suite, its arguments converted from text to the types of its fields.

    Raises:
        InputError: As for `choose_suites`.
    """
    kind = find_suite(name)
    names = {field.name for field in dataclasses.fields(kind) if field.init}
    hints = typing.get_type_hints(kind)
    values = {}
    for key, value in arguments.items():
        field = old_fields(kind).get(key, key)
        if field not in names:
            raise InputError(f"{name}: there is no argument {key!r}.{nearest(key, names)}")
        values[key] = _value(name, key, value, hints[field])
    built: Suite = kind(**values)
    return built


def _value(name: str, key: str, value: Any, kind: Any) -> Any:
    try:
        return TypeAdapter(kind).validate_python(value)
    except PydanticError as error:
        raise InputError(f"{name}: {key}={value!r} is not possible: {error.errors()[0]['msg'].lower()}.") from None


def load_measures(suite: Suite, parser: str, data: Path | None) -> Sequence[Measure]:
    """Return the measures of a suite; a suite that needs its files to read answers loads them first.

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


def read_arguments(suite: Suite, names: Iterable[str]) -> dict[str, Any]:
    """Return the named arguments of a suite as it understood them."""
    return {name: getattr(suite, name) for name in names}


def check_parser(suite: Suite, parser: str | None) -> str:
    """Return a parser of the suite, the suite's first one where none is named.

    Raises:
        InputError: It has no such parser; names the nearest.
    """
    parsers: Sequence[str] = suite.parsers
    if parser is not None and parser not in parsers:
        raise InputError(f"{suite.name}: no parser is called {parser!r}.{nearest(parser, parsers)}")
    return parser or parsers[0]


__getattr__ = moved_names(
    __name__,
    {
        "chosen": "lvlm_guard.bench.running.choosing:choose_suites",
        "made_suite": "lvlm_guard.bench.running.choosing:build_suite",
        "checked_parser": "lvlm_guard.bench.running.choosing:check_parser",
        "measures": "lvlm_guard.bench.running.choosing:load_measures",
        "arguments_of": "lvlm_guard.bench.running.choosing:read_arguments",
    },
)
