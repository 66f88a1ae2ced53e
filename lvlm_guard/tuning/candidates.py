"""Which strategies are searched, and how a trial makes a stack of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lvlm_guard.errors import GuardError, InputError
from lvlm_guard.host.plugins import Offer, catalogue, is_marked, is_neutral
from lvlm_guard.host.stack import Stack
from lvlm_guard.host.stack_files import is_stack_file
from lvlm_guard.strategy.hookspecs import Strategy, hook_names
from lvlm_guard.strategy.names import strategy_name
from lvlm_guard.tuning.space import Parameter, Trial, find_parameters

CONTROL, SEARCH = "control", "search"
GATED = "gated"
"""The strategy that applies others where the model is unsure."""

GATEABLE = frozenset({"start", "branches", "readouts", "terms"})
"""Hooks of strategies that act by their terms alone, so that they can be gated token by token."""

MARGINS = (0.25, 8.0)
"""Gates that are searched: best minus second-best logit below which a stack acts, in nats."""

NOBODY = "none"
"""What a trial chooses where there is no further strategy, or no gate."""

Entries = tuple[Mapping[str, Any], ...]
"""A stack as a stack file holds it: entries with `name` and `params`."""


@dataclass(frozen=True)
class Candidate:
    """A strategy that may be part of a stack.

    Args:
        name: Its name.
        fixed: Parameters that are given, such as an artefact.
        parameters: What is searched.
        is_gateable: Whether it acts by its terms alone.
    """

    name: str
    fixed: Mapping[str, Any]
    parameters: tuple[Parameter, ...]
    is_gateable: bool

    def build_entry(self, trial: Trial) -> dict[str, Any]:
        """Return an entry of a stack whose values a trial chooses."""
        values = {parameter.name: parameter.suggest(trial, self.name) for parameter in self.parameters}
        return {"name": self.name, "params": {**self.fixed, **values}}

    @property
    def defaults(self) -> dict[str, Any]:
        """The published values of what is searched, as a trial would choose them."""
        return {f"{self.name}.{parameter.name}": parameter.default for parameter in self.parameters}


@dataclass(frozen=True)
class SearchSpace:
    """All stacks that a search may propose.

    Args:
        candidates: Strategies.
        largest: Most strategies of a stack.
        left_out: Strategies that are not searched, with the reason.
    """

    candidates: tuple[Candidate, ...]
    largest: int = 2
    left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def propose(self, trial: Trial) -> Entries:
        """Return the entries of a stack, by name in alphabetical order, since terms commute; gated where a trial says so."""
        by_name = {candidate.name: candidate for candidate in self.candidates}
        chosen = {trial.suggest_categorical("strategy 1", list(by_name))}
        for place in range(2, self.largest + 1):
            chosen.add(trial.suggest_categorical(f"strategy {place}", [NOBODY, *by_name]))
        members = [by_name[name] for name in sorted(chosen - {NOBODY})]
        entries = tuple(member.build_entry(trial) for member in members)
        gateable = all(member.is_gateable for member in members) and GATED in catalogue().offers
        if not gateable or trial.suggest_categorical("gate", [NOBODY, "margin"]) == NOBODY:
            return entries
        margin = trial.suggest_float("gate.margin", *MARGINS, log=True)
        return ({"name": GATED, "params": {"margin": margin, "strategies": list(entries)}},)

    def list_defaults(self) -> list[dict[str, Any]]:
        """Return what a trial would choose for each candidate alone at its published values."""
        alone = {f"strategy {place}": NOBODY for place in range(2, self.largest + 1)}
        gate = {"gate": NOBODY}
        return [{"strategy 1": candidate.name, **alone, **candidate.defaults, **gate} for candidate in self.candidates]


def find_space(names: Iterable[str] | None, *, largest: int = 2, allow: Collection[str] = ()) -> SearchSpace:
    """Return the stacks to search.

    Args:
        names: Names of strategies, or stack files whose entries give what is fixed; None is every installed one that can
            work without an artefact and costs no more than some forwards.
        largest: Most strategies of a stack, at least 1.
        allow: Functions that stack files may name, as for `Stack.of`.

    Raises:
        InputError: A control, the same strategy twice, or nothing that can be searched.
        PluginError: There is no strategy of that name.
        StackError: A stack file cannot be read, or a strategy lacks a parameter that must be given.
    """
    if largest < 1:
        raise InputError(f"A stack has at least one strategy, got {largest}.")
    reasons: dict[str, str] = {}
    if names is None:
        offers = list(catalogue())
        reasons = {offer.name: reason for offer in offers if (reason := _find_reason(offer)) is not None}
        chosen = [_build_candidate({"name": offer.name}) for offer in offers if offer.name not in reasons]
    else:
        chosen = [_build_candidate(entry) for value in names for entry in _read_entries(value, allow)]
    _check_candidates(chosen)
    return SearchSpace(tuple(sorted(chosen, key=lambda candidate: candidate.name)), largest, reasons)


def _find_reason(offer: Offer) -> str | None:
    """Return why a strategy is not searched unless it is named; None where it is."""
    family = getattr(offer.strategy, "family", "")
    if family == CONTROL:
        return "a control"
    if family == SEARCH:
        return "a search: it costs many times plain generate; name it to search it"
    if offer.name == GATED:
        return "part of every stack that can be gated"
    required = [
        field.name
        for field in dataclasses.fields(offer.strategy)
        if field.init and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if required:
        return f"needs {required[0]}: name a stack file that holds it"
    return _find_reason_at_defaults(offer)


def _find_reason_at_defaults(offer: Offer) -> str | None:
    """Return why a strategy at its published values is nothing to search; None where it is."""
    try:
        (strategy,) = Stack.of(offer.name)
    except GuardError as error:
        return f"cannot be built: {error}"
    if is_neutral(strategy):
        return "does nothing at its published values"
    return "asks the model again: name it to search it" if is_marked(getattr(strategy, "finish", None)) else None


def _read_entries(value: str, allow: Collection[str]) -> Sequence[Mapping[str, Any]]:
    """Return entries with the parameters that are fixed: those of a file that differ from their published values."""
    if not is_stack_file(value):
        return [{"name": value}]
    return [
        {"name": strategy_name(strategy), "params": _find_changed(strategy)}
        for strategy in Stack.read(value, allow=allow)
    ]


def _find_changed(strategy: Any) -> dict[str, Any]:
    """Return parameters that differ from their defaults, as stack files hold them."""
    plain = Stack((strategy,)).to_dict()["stack"][0]["params"]
    defaults = {field.name: field.default for field in dataclasses.fields(strategy)}
    return {name: value for name, value in plain.items() if getattr(strategy, name) != defaults[name]}


def _build_candidate(entry: Mapping[str, Any]) -> Candidate:
    strategy = catalogue().find(entry["name"])
    fixed = dict(entry.get("params", {}))
    if getattr(strategy, "family", "") == CONTROL:
        raise InputError(f"{entry['name']} is a control, which a stack has to beat: leave it out of the strategies.")
    hooks = {hook for hook in hook_names(Strategy) if is_marked(getattr(strategy, hook, None))}
    return Candidate(entry["name"], fixed, find_parameters(strategy, fixed), {"terms"} <= hooks <= GATEABLE)


def _check_candidates(candidates: Sequence[Candidate]) -> None:
    if not candidates:
        raise InputError("There is no strategy to search: name some by --strategies.")
    names = [candidate.name for candidate in candidates]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{name} is among the strategies twice. Leave one out.")
        if name == GATED:
            raise InputError("gated is part of every stack that can be gated: leave it out of the strategies.")
    for candidate in candidates:
        Stack.of({"name": candidate.name, "params": candidate.fixed})  # what lacks a parameter is refused here


def describe_entries(entries: Iterable[Mapping[str, Any]]) -> str:
    """Write a stack in a few words: names, with the parameters in brackets."""
    return " + ".join(_describe_entry(entry) for entry in entries) or "plain"


def _describe_entry(entry: Mapping[str, Any]) -> str:
    parameters = dict(entry.get("params", {}))
    if entry["name"] == GATED:
        inner = describe_entries(parameters["strategies"])
        return f"{inner} where the margin is below {parameters['margin']:.3g}"
    settings = ", ".join(f"{name} {_describe_value(value)}" for name, value in parameters.items())
    return f"{entry['name']} ({settings})" if settings else str(entry["name"])


def _describe_value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
