"""What is searched of a strategy is read off its own fields."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import optuna
import pytest
from pydantic import Field

from lvlm_guard import Branch, Contrast, InputError, PluginRejected, Stack, StackError, hookimpl
from lvlm_guard.errors import PluginError
from lvlm_guard.fields import ContrastStrength, LayerRange, Seed, Share, Timeout, UserFunction
from lvlm_guard.host.plugins import catalogue
from lvlm_guard.tuning.candidates import describe_entries, find_space
from lvlm_guard.tuning.space import NumberRange, Options, find_parameters


@dataclass(frozen=True)
class Sample:
    """A strategy with a field of every kind."""

    name: ClassVar[str] = "sample"
    neutral: ClassVar[dict[str, float]] = {"alpha": 0.0, "factor": 1.0}

    alpha: ContrastStrength = 1.0
    factor: Annotated[float, Field(ge=0, le=100)] = 0.9
    share: Share = 0.5
    steps: Annotated[int, Field(ge=0, lt=1000)] = 500
    kind: Literal["a", "b"] = "b"
    switch: bool = False
    stated: Annotated[float, Field(ge=0, le=1, json_schema_extra={"search": [0.2, 0.6]})] = 0.3
    seed: Seed = 0
    timeout: Timeout = 60.0
    function: UserFunction = None
    layers: LayerRange = (0.0, 1.0)
    zero: Annotated[float, Field(ge=0, le=1)] = 0.0
    swapped: bool = False

    @hookimpl
    def terms(self, gen):
        yield Contrast(Branch.without_image(), self.alpha)


def test_ranges_are_read_from_bounds_defaults_and_neutral_values():
    found = {parameter.name: parameter for parameter in find_parameters(Sample)}
    assert found == {
        "alpha": NumberRange("alpha", 0.25, 4.0, 1.0, is_log=True),
        "factor": NumberRange("factor", pytest.approx(0.6), pytest.approx(0.975), 0.9),
        "share": NumberRange("share", 0.125, 1.0, 0.5, is_log=True),
        "steps": NumberRange("steps", 125, 999, 500, is_whole=True, is_log=True),
        "kind": Options("kind", ("a", "b"), "b"),
        "switch": Options("switch", (False, True), False),
        "stated": NumberRange("stated", 0.2, 0.6, 0.3, is_log=True),
    }


def test_what_is_given_is_not_searched():
    assert "alpha" not in {parameter.name for parameter in find_parameters(Sample, {"alpha"})}


@pytest.mark.parametrize("ends", [[0.4, 0.6], [0.2], "0.2", [0.2, "0.6"]])
def test_a_stated_range_that_cannot_be_used_is_refused(ends):
    annotation = Annotated[float, Field(json_schema_extra={"search": ends})]
    odd = dataclasses.make_dataclass("Odd", [("stated", annotation, 0.3)], namespace={"name": "odd"}, frozen=True)
    with pytest.raises(PluginRejected, match=r"odd\.stated"):
        find_parameters(odd)


@pytest.mark.parametrize("offer", list(catalogue()), ids=lambda offer: offer.name)
def test_every_value_of_a_range_can_be_built(offer):
    required = [
        field.name
        for field in dataclasses.fields(offer.strategy)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if required:
        pytest.skip(f"needs {required[0]}")
    for parameter in find_parameters(offer.strategy):
        ends = parameter.values if isinstance(parameter, Options) else (parameter.low, parameter.high)
        for value in ends:
            Stack.of({"name": offer.name, "params": {parameter.name: value}})
        assert parameter.default == getattr(offer.strategy(), parameter.name)


def test_the_space_leaves_out_controls_searches_and_what_needs_an_artefact():
    space = find_space(None)
    names = {candidate.name for candidate in space.candidates}
    assert {"vcd", "vdd", "dola", "vsv"} <= names
    assert names.isdisjoint({"yes_bias", "contrarian", "opera", "rank", "nullu", "evidence", "revise", "gated"})
    assert space.left_out["yes_bias"] == "a control"
    assert "artefact" in space.left_out["nullu"]
    assert space.left_out["evidence"] == "does nothing at its published values"


def test_a_stack_file_gives_what_is_fixed(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('[[stack]]\nname = "vdd"\nparams = {blank = "none", alpha = 1.0}\n', encoding="utf-8")
    (candidate,) = find_space([str(path)]).candidates
    assert candidate.fixed == {"blank": "none"}
    assert {parameter.name for parameter in candidate.parameters} == {"alpha", "beta"}


def propose(space, **choices):
    return space.propose(optuna.trial.FixedTrial(choices))


def test_stacks_are_in_alphabetical_order_and_hold_each_strategy_once():
    space = find_space(["memvr", "vsv"])
    values = {"vsv.strength": 0.2, "memvr.ratio": 0.1, "memvr.threshold": 0.5}
    both = propose(space, **{"strategy 1": "vsv", "strategy 2": "memvr"}, **values)
    assert [entry["name"] for entry in both] == ["memvr", "vsv"]
    assert both == propose(space, **{"strategy 1": "memvr", "strategy 2": "vsv"}, **values)
    alone = propose(space, **{"strategy 1": "vsv", "strategy 2": "vsv"}, **values)
    assert [entry["name"] for entry in alone] == ["vsv"]


def test_only_what_acts_by_terms_alone_is_gated():
    space = find_space(["vdd", "vsv"])
    vdd = {"vdd.alpha": 1.0, "vdd.beta": 0.1, "vdd.blank": "both"}
    gated = propose(space, **{"strategy 1": "vdd", "strategy 2": "none", "gate": "margin", "gate.margin": 2.0}, **vdd)
    assert describe_entries(gated) == "vdd (alpha 1, beta 0.1, blank both) where the margin is below 2"
    assert Stack.of(list(gated)).names == ("gated",)
    with_vsv = propose(
        space, **{"strategy 1": "vdd", "strategy 2": "vsv", "vsv.strength": 0.1, "gate": "margin"}, **vdd
    )
    assert Stack.of(list(with_vsv)).names == ("vdd", "vsv")


def test_published_values_come_first_one_strategy_at_a_time():
    space = find_space(["dola", "vcd"])
    stacks = [Stack.of([dict(entry) for entry in propose(space, **choices)]) for choices in space.list_defaults()]
    assert [stack.to_dict() for stack in stacks] == [Stack.of(name).to_dict() for name in ("dola", "vcd")]


@pytest.mark.parametrize(
    ("names", "error", "words"),
    [
        (["contrarian"], InputError, "is a control"),
        (["vcd", "vcd"], InputError, "twice"),
        (["gated"], InputError, "leave it out"),
        ([], InputError, "no strategy to search"),
        (["vddd"], PluginError, "Did you mean 'vdd'"),
        (["nullu"], StackError, "artefact"),
        (["missing.toml"], StackError, "missing.toml"),
    ],
)
def test_what_cannot_be_searched_is_refused(names, error, words):
    with pytest.raises(error, match=words):
        find_space(names)


def test_a_stack_of_nothing_is_refused():
    with pytest.raises(InputError, match="at least one"):
        find_space(["vcd"], largest=0)
