"""Discovery of strategies through entry points, and the strict manager that calls their hooks."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from typing import Any

import pluggy
from pydantic import TypeAdapter
from torch import Tensor

from lvlm_guard.errors import PluginError, PluginRejected, nearest, quote
from lvlm_guard.host.discovery import Broken, describe_broken, distribution_of, load_each
from lvlm_guard.host.presets import PRESETS
from lvlm_guard.strategy.hookspecs import PROJECT, Discovery, Strategy, hook_names
from lvlm_guard.strategy.names import strategy_name

GROUP = "lvlm_guard"
PLAIN = "plain"
"""Name of the stack without strategies, which no strategy can have."""
MOST_VALUES = 1000
"""Values that one hook may yield; more would be a generator without end."""
SILENT_HOOKS = ("start", "observe")
"""Hooks that return nothing."""


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
        parameters to their neutral values and is empty where the strategy states none. `contrast_strength` is
        the name of the parameter that weighs the contrast, None where nothing is contrasted. `version` is the
        distribution's, None where it is not installed as one.
        """
        schema = TypeAdapter(self.strategy).json_schema()
        neutral = getattr(self.strategy, "neutral", None) or {}
        summary, _, details = (inspect.getdoc(self.strategy) or "").partition("\n")
        parameters = [
            {"name": name, **_describe_parameter(entry), "neutral": neutral.get(name)} | _state_required(name, schema)
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
            "contrast_strength": contrast_strength(self.strategy),
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
        """Add a strategy class.

        Raises:
            PluginRejected: The class breaks the hook contract, or its name is taken.
        """
        check_strategy(strategy)
        offer = Offer(strategy, distribution)
        previous = self.offers.get(offer.name)
        if previous is not None and previous.strategy is not strategy:
            raise PluginRejected(
                f"{distribution} offers a strategy {offer.name!r}, but {previous.distribution} already does; rename one."
            )
        self.offers[offer.name] = offer

    def find(self, name: str) -> type:
        """Return the strategy class called `name`.

        Raises:
            PluginError: No installed distribution offers it.
        """
        if name not in self.offers:
            raise PluginError(
                f"No strategy is called {quote(name)}.{nearest(name, self.offers)}{describe_broken(self.broken)}"
            )
        return self.offers[name].strategy


@functools.cache
def catalogue() -> Catalogue:
    """Find every offered strategy once per process; what cannot be loaded is reported and skipped."""
    return discover(entry_points(group=GROUP))


def discover(points: Sequence[EntryPoint]) -> Catalogue:
    """Build a catalogue from entry points; one that fails is warned about and listed as broken."""
    strategies = Catalogue()

    def register(point: EntryPoint) -> None:
        staged = Catalogue(dict(strategies.offers))
        distribution = distribution_of(point)
        load_plugin(point).hook.register_strategies(register=lambda strategy: staged.add(strategy, distribution))
        strategies.offers.update(staged.offers)

    strategies.broken += load_each(points, register, "plugin")
    return strategies


def load_plugin(point: EntryPoint) -> pluggy.PluginManager:
    """Return a manager of the discovery hooks that knows only the plugin of this entry point."""
    plugins = pluggy.PluginManager(PROJECT)
    plugins.add_hookspecs(Discovery)
    plugins.register(point.load(), name=point.name)
    plugins.check_pending()
    return plugins


def is_neutral(strategy: object) -> bool:
    """Return whether a strategy has all of its neutral values; one that states none never has."""
    neutral = getattr(strategy, "neutral", None) or {}
    return bool(neutral) and all(getattr(strategy, name) == value for name, value in neutral.items())


def contrast_strength(strategy: type | object) -> str | None:
    """Return the parameter by which a strategy class or instance weighs its contrast; None where it contrasts nothing."""
    return getattr(strategy, "contrast_strength", None)


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
    _check_statements(name, strategy)
    hooks = hook_names(Strategy)
    for attribute, member in inspect.getmembers(strategy, callable):
        if is_marked(member):
            _check_hook(name, attribute, member, hooks)
        elif attribute in hooks:
            raise PluginRejected(f"{name}.{attribute}: a hook without its marker; decorate it with @hookimpl.")
    _check_parameters(name, strategy)


def _check_statements(name: str, strategy: type) -> None:
    """Check that what a class states about itself is of the right kind, and that stacks can hold its name."""
    for attribute in ("name", "family", "paper", "cost", "contrast_strength"):
        value = getattr(strategy, attribute, None)
        if value is not None and not isinstance(value, str):
            raise PluginRejected(
                f"{name}.{attribute}: must be text in the class, {attribute} = '...', got {quote(value)}."
            )
    if not re.fullmatch(r"[\w.@-]+", name) or name in (PLAIN, *PRESETS):
        raise PluginRejected(
            f"A strategy's name has letters, digits and _ - . @, and is not that of a stack ({', '.join((PLAIN, *PRESETS))}), got {quote(name)}."
        )
    observes = getattr(strategy, "observes", False)
    if not isinstance(observes, bool):
        raise PluginRejected(f"{name}.observes: must be True or False in the class, got {quote(observes)}.")
    neutral = getattr(strategy, "neutral", None)
    if neutral is not None and not isinstance(neutral, Mapping):
        raise PluginRejected(
            f"{name}.neutral: must map parameters to values, as in {{'alpha': 0.0}}, got {quote(neutral)}."
        )


def _check_parameters(name: str, strategy: type) -> None:
    """Check that `contrast_strength` and `neutral` name parameters."""
    parameters = [field.name for field in dataclasses.fields(strategy)]
    strength = contrast_strength(strategy)
    stated = [("neutral", parameter) for parameter in getattr(strategy, "neutral", None) or {}]
    if strength is not None:
        stated.append(("contrast_strength", strength))
    for attribute, parameter in stated:
        if parameter not in parameters:
            hint = nearest(str(parameter), parameters)
            raise PluginRejected(f"{name}.{attribute}: no parameter is called {parameter!r}.{hint}")


def _check_hook(name: str, hook: str, function: Callable[..., Any], hooks: Sequence[str]) -> None:
    if hook not in hooks:
        raise PluginRejected(f"{name}.{hook}: no hook is called {hook!r}.{nearest(hook, hooks)}")
    for parameter in list(inspect.signature(function).parameters.values())[1:]:
        if parameter.name != "gen":
            raise PluginRejected(f"{name}.{hook}: no such hook parameter, {parameter.name!r}; it is {hook}(self, gen).")
        if parameter.default is not parameter.empty or parameter.kind is parameter.KEYWORD_ONLY:
            raise PluginRejected(
                f"{name}.{hook}{inspect.signature(function)}: the hook parameter {parameter.name!r} must be plain, "
                f"without default or *; the hook is {hook}(self, gen)."
            )


class StrategyCalls:
    """The strategies of one stack behind pluggy, strictly checked, called in the order of the list.

    No hook of a strategy at its neutral values is ever called, so a strategy needs no code for them.
    """

    def __init__(self, strategies: Sequence[object]) -> None:
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(Strategy)
        self.names = tuple(strategy_name(strategy) for strategy in strategies)
        for name, strategy in reversed(list(zip(self.names, strategies, strict=True))):
            check_strategy(type(strategy))
            self._manager.register(strategy, name=name)
        self._manager.check_pending()
        neutral = {name for name in self.names if is_neutral(self._manager.get_plugin(name))}
        self._callers: Mapping[str, Mapping[str, Any]] = {
            hook: {
                name: self._caller(hook, name)
                for name in self.names
                if name not in neutral and self.implements(hook, name)
            }
            for hook in hook_names(Strategy)
        }

    def find(self, name: str) -> Any:
        """Return the strategy called `name`."""
        return self._manager.get_plugin(name)

    def implements(self, hook: str, name: str) -> bool:
        """Return whether the strategy called `name` implements `hook`, also at its neutral values."""
        return is_marked(getattr(self._manager.get_plugin(name), hook, None))

    def active(self, hook: str) -> tuple[str, ...]:
        """Return the names of the strategies that implement `hook` and are not at their neutral values."""
        return tuple(self._callers[hook])

    @property
    def revising(self) -> tuple[str, ...]:
        """Names of the active strategies that may revise answers: those that finish, and do not only observe."""
        return tuple(name for name in self.active("finish") if not self.observes(name))

    @property
    def asking(self) -> tuple[str, ...]:
        """Names of the active strategies that may ask the model when they finish."""
        return tuple(name for name in self.active("finish") if getattr(self.find(name), "asks", True))

    def observes(self, name: str) -> bool:
        """Return whether the strategy called `name` states that it changes no answer."""
        return bool(getattr(self.find(name), "observes", False))

    def call(self, hook: str, gen: Any) -> dict[str, list[Any]]:
        """Call `hook` on every active strategy in stack order; per strategy, the values it yielded or returned.

        Raises:
            PluginRejected: A hook returned what no hook returns, or changed what it may only read.
        """
        return {name: _call_one(f"{name}.{hook}", caller, gen) for name, caller in self._callers[hook].items()}

    def _caller(self, hook: str, name: str) -> Any:
        silenced = [self._manager.get_plugin(plugin) for plugin in self.names if plugin != name]
        return self._manager.subset_hook_caller(hook, silenced)


def _call_one(hook: str, caller: Any, gen: Any) -> list[Any]:
    """Call one hook of one strategy; what it raises passes through, with a note of where it was raised."""
    before = _snapshot(gen)
    try:
        values = [value for result in caller(gen=gen) for value in _collect(hook, result)]
    except Exception as error:
        if hasattr(error, "add_note") and not isinstance(error, PluginRejected):
            error.add_note(f"Raised by a strategy in its hook: {hook}.")
        raise
    _check_untouched(hook, before, _snapshot(gen))
    if values and hook.rpartition(".")[2] in SILENT_HOOKS:
        raise PluginRejected(f"{hook} must return nothing, it returned {quote(values[0])}: drop the return or yield.")
    return values


def _collect(hook: str, result: Any) -> list[Any]:
    if result is None:
        return []
    if not isinstance(result, Iterable) or isinstance(result, (str, bytes, Mapping, Tensor)):
        raise PluginRejected(f"{hook} must return a list, or yield, or return nothing; it returned {quote(result)}.")
    values = list(itertools.islice(result, MOST_VALUES + 1))
    if len(values) > MOST_VALUES:
        raise PluginRejected(f"{hook} yields more than {MOST_VALUES} values: end it.")
    return values


def _snapshot(gen: Any) -> dict[str, Any]:
    """Return what strategies may only read: the parts of the object, and the versions of tensors that could be changed in place."""
    parts = dict(getattr(gen, "__dict__", {}))
    forward, prompt = parts.get("forward"), parts.get("prompt")
    tensors = {"the logits of main": getattr(forward, "main", None)}
    tensors |= {f"the logits of branch {key!r}": logits for key, logits in getattr(forward, "branches", {}).items()}
    tensors |= {f"prompt.{name}": getattr(prompt, name, None) for name in ("ids", "attention_mask", "image_mask")}
    versions = {name: _version(tensor) for name, tensor in tensors.items()}
    return parts | versions


def _version(tensor: Any) -> int | None:
    return tensor._version if isinstance(tensor, Tensor) and not tensor.is_inference() else None  # noqa: SLF001


def _check_untouched(hook: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    for name in {**before, **after}:
        same = before.get(name) is after.get(name) or (
            isinstance(before.get(name), int) and before[name] == after.get(name)
        )
        if not same:
            raise PluginRejected(
                f"{hook} changed {name} of gen, which strategies only read: keep values in gen.state or gen.rows, and "
                "change clones of tensors."
            )


def _find_version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _state_required(parameter: str, schema: Mapping[str, Any]) -> dict[str, bool]:
    return {"required": True} if parameter in schema.get("required", ()) else {}


def _describe_parameter(entry: Mapping[str, Any]) -> dict[str, Any]:
    bounds = {"minimum": "min", "exclusiveMinimum": "above", "maximum": "max", "exclusiveMaximum": "below"}
    described = {"type": entry.get("type") or _describe_type(entry), "default": entry.get("default")}
    described |= {word: entry[name] for name, word in bounds.items() if name in entry}
    described |= {name: entry[name] for name in ("enum", "description") if name in entry}
    return described


def _describe_type(entry: Mapping[str, Any]) -> str:
    return " or ".join(str(kind.get("type", "any")) for kind in entry.get("anyOf", ())) or "any"
