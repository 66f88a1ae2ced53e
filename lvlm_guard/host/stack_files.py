"""Stack files as plain values: TOML and YAML in UTF-8, of a size that a person can read."""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import yaml
from yaml.constructor import ConstructorError

from lvlm_guard.errors import StackError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LARGEST = 256 * 1024
"""Bytes that a stack file may have."""
BOOLS = {"true": True, "false": False}
_TAG = "tag:yaml.org,2002:"


def is_stack_file(value: object) -> bool:
    """Whether a value is a path, or text that ends like the name of a stack file."""
    return isinstance(value, os.PathLike) or (isinstance(value, str) and value.lower().endswith(tuple(READERS)))


def read_file(path: Path) -> Any:
    """Return the content of a stack file as plain values.

    Raises:
        StackError: It is missing, no file, too large, not UTF-8, or malformed; with the place where that is known.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise StackError(f"{path}: a stack file ends in {', '.join(READERS)}.")
    try:
        return reader(_read_text(path))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise StackError(f"{path}{place}: cannot be read as a stack: {error.problem}.") from None
    except RecursionError:
        raise StackError(f"{path}: cannot be read as a stack: its values are nested too deeply.") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise StackError(f"{path}: cannot be read as a stack: {error}") from None


def _read_text(path: Path) -> str:
    if not stat.S_ISREG(path.stat().st_mode):
        raise StackError(f"{path}: a stack file is a regular file, not a folder, pipe or device.")
    with path.open("rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise StackError(f"{path}: a stack file has at most {LARGEST // 1024} KiB; is this another file?")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise StackError(f"{path}: cannot be read as a stack: {error}. Save it as UTF-8.") from None


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core schema: no dates, no numbers in base 60, `yes` and `no` are text, `1e-3` is a number.

    A key that comes twice, and a merge of mappings, are refused.
    """

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - declared so by the base
    yaml_constructors: ClassVar[dict[str | None, Any]] = {
        _TAG + "str": yaml.SafeLoader.construct_yaml_str,
        _TAG + "seq": yaml.SafeLoader.construct_yaml_seq,
        _TAG + "map": yaml.SafeLoader.construct_yaml_map,
        None: yaml.SafeLoader.construct_undefined,
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise ConstructorError(None, None, f"a key must be text, got {key!r}", key_node.start_mark)
            if key in keys:
                raise ConstructorError(None, None, f"the key {key!r} comes twice", key_node.start_mark)
            keys.add(key)
        return super().construct_mapping(node, deep)


def _read_scalar(convert: Callable[[str], Any]) -> Callable[[Any, Any], Any]:
    def construct(loader: Any, node: Any) -> Any:
        text = str(loader.construct_scalar(node))
        try:
            return convert(text)
        except (KeyError, ValueError):
            problem = f"{text[:40]!r} is no {node.tag.removeprefix(_TAG)} that can be read"
            raise ConstructorError(None, None, problem, node.start_mark) from None

    return construct


def _read_whole(text: str) -> int:
    return int(text, 0 if text[:2] in ("0x", "0o") else 10)


def _read_float(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


for _name, _pattern, _first, _convert in (
    ("null", r"~|null|Null|NULL|", "~nN", lambda _: None),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF", lambda text: BOOLS[text.lower()]),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789", _read_whole),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
        _read_float,
    ),
):
    _Loader.add_implicit_resolver(
        _TAG + _name, re.compile(f"(?:{_pattern})\\Z"), [*_first, *([""] if _name == "null" else [])]
    )
    _Loader.add_constructor(_TAG + _name, _read_scalar(_convert))


def _load_yaml(text: str) -> Any:
    return yaml.load(text, _Loader)  # noqa: S506 - a safe loader with fewer types


READERS: dict[str, Callable[[str], Any]] = {".toml": tomllib.loads, ".yaml": _load_yaml, ".yml": _load_yaml}
"""How a stack file may end, and what reads it."""
