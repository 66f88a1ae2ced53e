"""An ordered, validated stack of strategies, from Python values, names, dicts, TOML or YAML."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError as PydanticError

from lvlm_guard.errors import PluginError, StackError, nearest
from lvlm_guard.host.plugins import build, catalogue, check_strategy, problems, strategy_name, validated

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ENTRY_KEYS = ("name", "params")


@dataclass(frozen=True)
class Stack:
    """Strategies in the order of their calls; empty is plain generate.

    Build one with `Stack.of`, which takes a stack, a strategy, a name, the path of a `.toml`, `.yaml` or `.yml` file,
    a mapping `{"stack": [...]}`, or a list of strategies, names and mappings `{"name": ..., "params": {...}}`.
    """

    strategies: tuple[object, ...] = ()

    @classmethod
    def of(cls, value: Any) -> Stack:
        """Build a stack.

        Raises:
            StackError: Names the path of the entry at fault and the nearest known name.
        """
        if isinstance(value, Stack):
            return value
        if isinstance(value, Path) or (isinstance(value, str) and Path(value).suffix in _READERS):
            return cls.read(Path(value))
        entries, path = _split_entries(value)
        strategies = tuple(_build_entry(entry, f"{path}[{index}]") for index, entry in enumerate(entries))
        _check_names(strategies, path)
        return cls(strategies)

    @classmethod
    def read(cls, path: Path) -> Stack:
        """Read a TOML or YAML file whose top level is `stack`, a list of `{name, params}`.

        Raises:
            StackError: The file is missing, malformed, or one of its entries is wrong.
        """
        reader = _READERS.get(path.suffix)
        if reader is None:
            raise StackError(f"{path}: a stack file ends in {', '.join(_READERS)}.")
        try:
            content = reader(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, yaml.YAMLError) as error:
            raise StackError(f"{path}: cannot be read as a stack: {error}") from None
        if not isinstance(content, Mapping) or "stack" not in content:
            raise StackError(f"{path}: expected a top-level list called 'stack', as in [[stack]] name = \"vcd\".")
        try:
            return cls.of(dict(content))
        except StackError as error:
            raise StackError(f"{path}: {error}") from None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the strategies in order."""
        return tuple(strategy_name(strategy) for strategy in self.strategies)

    def __iter__(self) -> Iterator[object]:
        return iter(self.strategies)

    def __len__(self) -> int:
        return len(self.strategies)

    def to_dict(self) -> dict[str, Any]:
        """Return the stack as plain values, accepted by `Stack.of`."""
        return {
            "stack": [
                {"name": strategy_name(strategy), "params": _plain_values(dataclasses.asdict(strategy))}  # type: ignore[call-overload]
                for strategy in self.strategies
            ]
        }


def _plain_values(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters as stack files hold them: paths are text there."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in parameters.items()}


_READERS: dict[str, Any] = {".toml": tomllib.loads, ".yaml": yaml.safe_load, ".yml": yaml.safe_load}


def _split_entries(value: Any) -> tuple[Sequence[Any], str]:
    if value is None:
        return (), "stack"
    if isinstance(value, Mapping) and "name" not in value:
        unknown = [str(key) for key in value if key != "stack"]
        if unknown:
            raise StackError(f"{unknown[0]}: unknown key.{nearest(unknown[0], ['stack'])}")
        return _split_entries(value.get("stack"))
    if isinstance(value, (list, tuple)):
        return value, "stack"
    return (value,), "stack"


def _build_entry(entry: Any, path: str) -> object:
    try:
        if isinstance(entry, str):
            return _build_named(entry, {}, path)
        if isinstance(entry, Mapping):
            return _from_mapping(entry, path)
        if dataclasses.is_dataclass(entry) and not isinstance(entry, type):
            check_strategy(type(entry))
            return validated(entry)
    except PluginError as error:
        raise StackError(f"{path}: {error}") from None
    raise StackError(f"{path}: expected a strategy, a name or a mapping with a name, got {entry!r}.")


def _from_mapping(entry: Mapping[str, Any], path: str) -> object:
    unknown = [key for key in entry if key not in ENTRY_KEYS]
    if unknown:
        raise StackError(f"{path}.{unknown[0]}: unknown key.{nearest(str(unknown[0]), ENTRY_KEYS)}")
    name, parameters = entry.get("name"), entry.get("params") or {}
    if not isinstance(name, str) or not isinstance(parameters, Mapping):
        raise StackError(f"{path}: expected name as text and params as a mapping, got {dict(entry)!r}.")
    return _build_named(name, parameters, path)


def _build_named(name: str, parameters: Mapping[str, Any], path: str) -> object:
    strategy = catalogue().find(name)
    names = [parameter.name for parameter in dataclasses.fields(strategy)]
    for parameter in parameters:
        if parameter not in names:
            hint = nearest(str(parameter), names)
            raise StackError(f"{path}.params.{parameter}: {name!r} has no such parameter.{hint}")
    try:
        return build(strategy, parameters)
    except PydanticError as error:
        raise StackError(f"{path}.params: {problems(error)}") from None


def _check_names(strategies: Sequence[object], path: str) -> None:
    first_index: dict[str, int] = {}
    for index, strategy in enumerate(strategies):
        name = strategy_name(strategy)
        if name in first_index:
            raise StackError(
                f"{path}[{index}]: {name!r} is already at {path}[{first_index[name]}]; each strategy goes in once."
            )
        first_index[name] = index
