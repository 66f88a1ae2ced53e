"""An ordered, validated stack of strategies, from Python values, names, dicts, TOML or YAML."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError as PydanticError

from lvlm_guard.errors import InputError, PluginError, StackError, nearest, quote
from lvlm_guard.host.parameters import build, check_values, problems, validated
from lvlm_guard.host.plugins import PLAIN, catalogue, check_strategy
from lvlm_guard.host.presets import PRESETS
from lvlm_guard.host.stack_files import is_stack_file, read_file
from lvlm_guard.strategy.names import strategy_name
from lvlm_guard.strategy.user_functions import AllowedName

ENTRY_KEYS = ("name", "params")
JOINT = "+"


@dataclass(frozen=True)
class _Source:
    """Where entries come from: the functions they may name, and the folder of the file they stand in."""

    allow: Collection[str]
    folder: Path | None = None


@dataclass(frozen=True)
class Stack:
    """Strategies in the order of their calls; empty is plain generate.

    Build one with `Stack.of`, which takes a stack, a strategy, a name, names joined by `+`, `"plain"`, a preset (`"light"`,
    `"balanced"` or `"thorough"`), the path of a `.toml`, `.yaml` or `.yml` file, a mapping `{"stack": [...]}`, or a list of
    strategies, names and mappings `{"name": ..., "params": {...}}`.
    """

    strategies: tuple[object, ...] = ()

    @classmethod
    def of(cls, value: Any, *, allow: Collection[str] = ()) -> Stack:
        """Build a stack; text means here what it means in stack files, commands and benchmarks.

        Args:
            value: One of the forms above; `"vcd+pai"` is one stack of two strategies, `"plain"` and None one of none.
            allow: Functions that parameters may name, each as `package.module:function`, beside those that installed
                distributions offer as entry points of the group `lvlm_guard.callables`, and those in the environment
                variable `LVLM_GUARD_ALLOW`. Functions passed as Python values need no leave.

        Raises:
            StackError: Names the path of the entry at fault and the nearest known name.
        """
        _check_allow(allow)
        if isinstance(value, Stack):
            return value
        if is_stack_file(value):
            return cls.read(value, allow=allow)
        return cls._build(value, _Source(allow))

    @classmethod
    def read(cls, path: str | Path, *, allow: Collection[str] = ()) -> Stack:
        """Read a TOML or YAML file whose top level is `stack`, a list of `{name, params}`.

        Relative paths of files in it are looked for beside it first, then in the current folder.

        Args:
            path: A regular file in UTF-8, at most 256 KiB.
            allow: Functions that the file may name, as for `Stack.of`; any other name is refused, for it runs code.

        Raises:
            StackError: The file is missing, malformed, or one of its entries is wrong.
        """
        if not isinstance(path, (str, Path)):
            raise StackError(f"A stack file is named by its path, got {quote(path)}.")
        content = read_file(Path(path))
        if not isinstance(content, Mapping) or "stack" not in content:
            raise StackError(f"{path}: expected a top-level list called 'stack', as in [[stack]] name = \"vcd\".")
        try:
            _check_allow(allow)
            return cls._build(dict(content), _Source(allow, Path(path).absolute().parent))
        except StackError as error:
            raise StackError(f"{path}: {error}") from None

    @classmethod
    def _build(cls, value: Any, source: _Source) -> Stack:
        try:
            check_values(value)
        except InputError as error:
            raise StackError(f"stack: {error}") from None
        strategies = tuple(
            _build_entry(entry, f"stack[{index}]", source) for index, entry in enumerate(_split_entries(value))
        )
        _check_names(strategies)
        return cls(strategies)

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


def name_stack(text: str) -> str:
    """Return what a stack is called that `Stack.of` makes of a text: names joined by `+` without spaces, or a file's stem."""
    if is_stack_file(text):
        return Path(text).stem
    return JOINT.join(part.strip() for part in text.split(JOINT))


def _plain_values(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters as stack files hold them: paths are text there."""
    return {name: str(value) if isinstance(value, (Path, AllowedName)) else value for name, value in parameters.items()}


def _check_allow(allow: Any) -> None:
    try:
        is_list = isinstance(allow, Collection) and not isinstance(allow, (str, bytes))
        is_list = is_list and all(isinstance(name, str) for name in allow)
    except Exception:  # noqa: BLE001 - whatever cannot be iterated is no list, however it says so
        is_list = False
    if not is_list:
        raise StackError(f"allow: expected a list of names package.module:function, got {quote(allow)}.")


def _split_entries(value: Any) -> Sequence[Any]:
    if isinstance(value, Mapping) and "name" not in value:
        return _list_entries(_read_top_level(value))
    return () if value is None else _list_entries(value)


def _read_top_level(value: Mapping[str, Any]) -> Any:
    unknown = [key for key in value if key != "stack"]
    if unknown:
        raise StackError(f"{_write_key(unknown[0])}: unknown key.{nearest(unknown[0], ['stack'])}")
    if value.get("stack") is None:
        raise StackError("stack: expected a list of strategies; an empty list is plain generate, got nothing.")
    return value["stack"]


def _write_key(key: object) -> str:
    return key if isinstance(key, str) else quote(key)


def _list_entries(value: Any) -> Sequence[Any]:
    if isinstance(value, str):
        return _split_names(value)
    return value if isinstance(value, (list, tuple)) else (value,)


def _split_names(text: str) -> Sequence[str]:
    """Return the names that a text joins by `+`."""
    names = [part.strip() for part in text.split(JOINT)]
    if names == [PLAIN]:
        return ()
    if names[0] in PRESETS and len(names) == 1:
        return PRESETS[names[0]].strategies
    if "" in names:
        raise StackError(f"stack: {quote(text)} leaves out a name. Write one, or join several: 'vcd+pai'.")
    if PLAIN in names:
        raise StackError(f"stack: {quote(text)}: {PLAIN!r} is the stack without strategies and stands alone.")
    _refuse_presets(names, "stack")
    return names


def _refuse_presets(names: Sequence[str], path: str) -> None:
    """Refuse presets among other entries, and say what to write in their place."""
    for name in names:
        if name in PRESETS:
            instead = JOINT.join(PRESETS[name].strategies)
            raise StackError(
                f"{path}: {name!r} is a whole stack and stands alone; to add to it, write {instead!r} instead."
            )


def _build_entry(entry: Any, path: str, source: _Source) -> object:
    try:
        if isinstance(entry, str):
            return _build_named(entry, {}, path, source)
        if isinstance(entry, Mapping):
            return _from_mapping(entry, path, source)
        if dataclasses.is_dataclass(entry) and not isinstance(entry, type):
            check_strategy(type(entry))
            return validated(entry, source.allow)
    except StackError:
        raise
    except (PluginError, InputError) as error:
        raise StackError(f"{path}: {error}") from None
    raise StackError(f"{path}: expected a strategy, a name or a mapping with a name, got {quote(entry)}.")


def _from_mapping(entry: Mapping[str, Any], path: str, source: _Source) -> object:
    entry = dict(entry)
    unknown = [key for key in entry if key not in ENTRY_KEYS]
    if unknown:
        raise StackError(f"{path}.{_write_key(unknown[0])}: unknown key.{nearest(unknown[0], ENTRY_KEYS)}")
    name, parameters = entry.get("name"), entry.get("params")
    parameters = {} if parameters is None else parameters
    if not isinstance(name, str) or not isinstance(parameters, Mapping):
        raise StackError(f"{path}: expected name as text and params as a mapping, got {quote(entry)}.")
    return _build_named(name, parameters, path, source)


def _build_named(name: str, parameters: Mapping[str, Any], path: str, source: _Source) -> object:
    if JOINT in name:
        raise StackError(f"{path}: {quote(name)} names several strategies; in a list each is an entry of its own.")
    _refuse_presets([name], path)
    strategy = catalogue().find(name)
    names = [parameter.name for parameter in dataclasses.fields(strategy)]
    for parameter in parameters:
        if parameter not in names:
            hint = nearest(parameter, names)
            raise StackError(f"{path}.params.{_write_key(parameter)}: {name!r} has no such parameter.{hint}")
    try:
        return build(strategy, parameters, source.allow, source.folder)
    except PydanticError as error:
        raise StackError(f"{path}.params: {problems(error)}") from None


def _check_names(strategies: Sequence[object]) -> None:
    first_index: dict[str, int] = {}
    for index, strategy in enumerate(strategies):
        name = strategy_name(strategy)
        if name in first_index:
            raise StackError(
                f"stack[{index}]: {name!r} is already at stack[{first_index[name]}]; each strategy goes in once."
            )
        first_index[name] = index
