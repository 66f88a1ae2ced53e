"""Discovery of strategies through entry points, and the strict manager that calls their hooks."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from typing import Any

import pluggy
from pydantic import PydanticUserError, TypeAdapter
from pydantic import ValidationError as PydanticError

from lvlm_guard.errors import PluginError, PluginRejected, nearest
from lvlm_guard.host.discovery import Broken, distribution_of, load_each
from lvlm_guard.strategy.hookspecs import PROJECT, Discovery, Strategy, hook_names

GROUP = "lvlm_guard"


@dataclass(frozen=True)
class Offer:
    """A strategy class, and the distribution that offers it."""

    strategy: type
    distribution: str

    @property
    def name(self) -> str:
        """The name the strategy goes by in stacks."""
        return strategy_name(self.strategy)

    def describe(self) -> dict[str, Any]:
        """Return everything the strategy states about itself as plain values for JSON.

        `summary` is the first line of the docstring, which holds the formula, and `details` the rest. `neutral` maps
        parameters to their neutral values and is empty where the strategy states none. `version` is the distribution's,
        None where it is not installed as one.
        """
        schema = TypeAdapter(self.strategy).json_schema()
        neutral = getattr(self.strategy, "neutral", None) or {}
        summary, _, details = (inspect.getdoc(self.strategy) or "").partition("\n")
        parameters = [
            {"name": name, **_plain(entry), "neutral": neutral.get(name)} | _state_required(name, schema)
            for name, entry in schema.get("properties", {}).items()
        ]
        return {
            "name": self.name,
            "family": getattr(self.strategy, "family", "other"),
            "distribution": self.distribution,
            "version": _find_version(self.distribution),
            "hooks": [name for name in hook_names(Strategy) if is_marked(getattr(self.strategy, name, None))],
            "paper": getattr(self.strategy, "paper", None),
            "cost": getattr(self.strategy, "cost", None),
            "summary": summary,
            "details": details.strip(),
            "neutral": dict(neutral),
            "parameters": parameters,
        }


@dataclass
class Catalogue:
    """Every strategy that the installed distributions offer, by name."""

    offers: dict[str, Offer] = field(default_factory=dict)
    broken: list[Broken] = field(default_factory=list)

    def __iter__(self) -> Iterator[Offer]:
        return iter(self.offers[name] for name in sorted(self.offers))

    def add(self, strategy: type, distribution: str) -> None:
        """Take up a strategy class.

        Raises:
            PluginRejected: The class breaks the hook contract, or its name is taken.
        """
        check_strategy(strategy)
        offer = Offer(strategy, distribution)
        taken = self.offers.get(offer.name)
        if taken is not None and taken.strategy is not strategy:
            raise PluginRejected(
                f"{distribution} offers a strategy {offer.name!r}, but {taken.distribution} already does; rename one."
            )
        self.offers[offer.name] = offer

    def find(self, name: str) -> type:
        """Return the strategy class called `name`.

        Raises:
            PluginError: No installed distribution offers it.
        """
        if name not in self.offers:
            raise PluginError(f"No strategy is called {name!r}.{nearest(name, self.offers)}{self._broken_hint()}")
        return self.offers[name].strategy

    def _broken_hint(self) -> str:
        names = ", ".join(f"{one.distribution} ({one.reason})" for one in self.broken)
        return f" Not loaded: {names}." if names else ""


@functools.cache
def catalogue() -> Catalogue:
    """Find every offered strategy once per process; what cannot be loaded is reported and skipped."""
    return discover(entry_points(group=GROUP))


def discover(points: Sequence[EntryPoint]) -> Catalogue:
    """Build a catalogue from entry points; one that fails is warned about and listed as broken."""
    found = Catalogue()
    found.broken += load_each(points, lambda point: _load(point, distribution_of(point), found), "plugin")
    return found


def _load(point: EntryPoint, distribution: str, found: Catalogue) -> None:
    plugins = pluggy.PluginManager(PROJECT)
    plugins.add_hookspecs(Discovery)
    plugins.register(point.load(), name=point.name)
    plugins.check_pending()
    staged = Catalogue(dict(found.offers))
    plugins.hook.register_strategies(register=lambda strategy: staged.add(strategy, distribution))
    found.offers.update(staged.offers)


def strategy_name(strategy: type | object) -> str:
    """Name of a strategy class or instance: its `name`, else the lower-cased class name."""
    owner = strategy if isinstance(strategy, type) else type(strategy)
    return str(getattr(strategy, "name", owner.__name__.lower()))


def is_neutral(strategy: object) -> bool:
    """Whether a strategy that states a neutral value is at it."""
    neutral = getattr(strategy, "neutral", None) or {}
    return bool(neutral) and all(getattr(strategy, name) == value for name, value in neutral.items())


def is_marked(function: object) -> bool:
    """Whether a function carries the `hookimpl` marker."""
    return hasattr(function, f"{PROJECT}_impl")


def check_strategy(strategy: type) -> None:
    """Check that a class is a frozen dataclass whose hooks pluggy would call as the author meant.

    Raises:
        PluginRejected: With the hook at fault and the fix.
    """
    name = strategy_name(strategy)
    if not dataclasses.is_dataclass(strategy) or not strategy.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise PluginRejected(f"{name}: a strategy is a frozen dataclass; decorate it with @dataclass(frozen=True).")
    known = hook_names(Strategy)
    for attribute, member in inspect.getmembers(strategy, callable):
        if is_marked(member):
            _check_hook(name, attribute, member, known)
        elif attribute in known:
            raise PluginRejected(f"{name}.{attribute}: a hook without its marker; decorate it with @hookimpl.")


def _check_hook(name: str, hook: str, function: Callable[..., Any], known: Sequence[str]) -> None:
    if hook not in known:
        raise PluginRejected(f"{name}.{hook}: no hook is called {hook!r}.{nearest(hook, known)}")
    for parameter in list(inspect.signature(function).parameters.values())[1:]:
        if parameter.name != "gen":
            raise PluginRejected(f"{name}.{hook}: no such hook parameter, {parameter.name!r}; it is {hook}(self, gen).")
        if parameter.default is not parameter.empty or parameter.kind is parameter.KEYWORD_ONLY:
            raise PluginRejected(
                f"{name}.{hook}{inspect.signature(function)}: the hook parameter {parameter.name!r} must be plain, "
                f"without default or *; the hook is {hook}(self, gen)."
            )


def validated(strategy: object) -> object:
    """Return a strategy whose field values are checked against, and converted to, its own annotations.

    Raises:
        PluginRejected: With each wrong parameter, or an annotation that cannot be checked.
    """
    fields = [one for one in dataclasses.fields(strategy) if one.init]  # type: ignore[arg-type]
    try:
        return build(type(strategy), {one.name: getattr(strategy, one.name) for one in fields})
    except PydanticError as error:
        raise PluginRejected(f"{strategy_name(strategy)}: {problems(error)}") from None


def build(strategy: type, parameters: Mapping[str, Any]) -> object:
    """Build a strategy of checked parameters; raises pydantic's error for wrong values."""
    try:
        return TypeAdapter(strategy).validate_python(dict(parameters))
    except PydanticUserError as error:
        raise PluginRejected(f"{strategy_name(strategy)}: an annotation cannot be checked: {error.message}") from None


def problems(error: PydanticError) -> str:
    """Put a validation error into one line: each parameter, what is wrong and what was given."""
    rows = error.errors(include_url=False)
    return "; ".join(
        f"{'.'.join(map(str, row['loc'])) or 'value'}: {row['msg'].lower()}, got {row['input']!r}" for row in rows
    )


class StrategyCalls:
    """The strategies of one stack behind pluggy, strictly checked, called in the order of the list."""

    def __init__(self, strategies: Sequence[object]) -> None:
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(Strategy)
        self.names = tuple(strategy_name(one) for one in strategies)
        for name, strategy in reversed(list(zip(self.names, strategies, strict=True))):
            check_strategy(type(strategy))
            self._manager.register(strategy, name=name)
        self._manager.check_pending()
        self._callers: Mapping[str, Mapping[str, Any]] = {
            hook: {name: self._only(hook, name) for name in self.names if self._implements(hook, name)}
            for hook in hook_names(Strategy)
        }

    def implements(self, hook: str, name: str) -> bool:
        """Whether the strategy called `name` implements `hook`."""
        return name in self._callers[hook]

    def active(self, hook: str) -> tuple[str, ...]:
        """Names of the strategies that implement `hook` and are not at their neutral value."""
        return tuple(name for name in self._callers[hook] if not is_neutral(self._manager.get_plugin(name)))

    def call(self, hook: str, gen: Any) -> dict[str, list[Any]]:
        """Call `hook` on every strategy in stack order; per strategy, the values it yielded or returned."""
        return {name: _collect(f"{name}.{hook}", caller(gen=gen)) for name, caller in self._callers[hook].items()}

    def _implements(self, hook: str, name: str) -> bool:
        return is_marked(getattr(self._manager.get_plugin(name), hook, None))

    def _only(self, hook: str, name: str) -> Any:
        others = [self._manager.get_plugin(other) for other in self.names if other != name]
        return self._manager.subset_hook_caller(hook, others)


def _collect(hook: str, results: list[Any]) -> list[Any]:
    for result in results:
        if result is not None and not isinstance(result, Iterable):
            raise PluginRejected(f"{hook} must return a list, or yield, or return nothing; it returned {result!r}.")
    return [value for result in results if result is not None for value in result]


def _find_version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _state_required(parameter: str, schema: Mapping[str, Any]) -> dict[str, bool]:
    return {"required": True} if parameter in schema.get("required", ()) else {}


def _plain(entry: Mapping[str, Any]) -> dict[str, Any]:
    bounds = {"minimum": "min", "exclusiveMinimum": "above", "maximum": "max", "exclusiveMaximum": "below"}
    described = {"type": entry.get("type") or _kinds(entry), "default": entry.get("default")}
    described |= {plain: entry[name] for name, plain in bounds.items() if name in entry}
    described |= {name: entry[name] for name in ("enum", "description") if name in entry}
    return described


def _kinds(entry: Mapping[str, Any]) -> str:
    return " or ".join(str(one.get("type", "any")) for one in entry.get("anyOf", ())) or "any"
