"""The strict manager, the order of calls, and what a strategy may not be."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from gold import Against

from lvlm_guard import Guard, NoEffectWarning, PluginRejected, StrategyRefused, hookimpl
from lvlm_guard.host.plugins import Catalogue, StrategyCalls, check_strategy
from lvlm_guard.strategy.hookspecs import Strategy, hook_names
from lvlm_guard.testing import tiny


def made(name="odd", frozen=True, **members):
    return dataclass(frozen=frozen)(type(name, (), {"name": name, "__annotations__": {}, **members}))


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"term": hookimpl(lambda self, gen: [])}, "no hook is called 'term'. Did you mean 'terms'"),
        ({"terms": lambda self, gen: []}, "without its marker"),
        ({"terms": hookimpl(lambda self, gen=None: [])}, "'gen' must be plain"),
        ({"terms": hookimpl(lambda self, *, gen: [])}, "'gen' must be plain"),
        ({"terms": hookimpl(lambda self, generation: [])}, "no such hook parameter, 'generation'"),
    ],
)
def test_hooks_that_would_be_ignored_are_refused(members, words):
    with pytest.raises(PluginRejected, match=words):
        check_strategy(made(**members))


def test_a_strategy_is_a_frozen_dataclass():
    with pytest.raises(PluginRejected, match="frozen dataclass"):
        check_strategy(made(frozen=False))
    with pytest.raises(PluginRejected, match="frozen dataclass"):
        check_strategy(type("Plain", (), {}))


def test_the_strength_of_a_contrast_is_a_parameter():
    with pytest.raises(
        PluginRejected, match=r"odd.contrast_strength: no parameter is called 'alhpa'. Did you mean 'alp"
    ):
        check_strategy(made(contrast_strength="alhpa", alpha=1.0, __annotations__={"alpha": float}))


def test_a_name_can_be_taken_only_once():
    found = Catalogue()
    found.add(made("mine"), "one")
    with pytest.raises(PluginRejected, match="two offers a strategy 'mine', but one already does"):
        found.add(made("mine"), "two")


def test_the_order_of_the_stack_is_the_order_of_calls():
    called = []

    def noting(name):
        return made(name, start=hookimpl(lambda self, gen: called.append(name)))()

    StrategyCalls([noting("first"), noting("second"), noting("third")]).call("start", None)
    assert called == ["first", "second", "third"]


@dataclass(frozen=True)
class Loud:
    """Notes every hook that the core calls, and refuses to run."""

    name: ClassVar[str] = "loud"
    neutral: ClassVar[dict[str, float]] = {"low": 0.0, "high": 1.0}
    called: ClassVar[list[str]] = []

    low: float = 0.0
    high: float = 1.0

    @hookimpl
    def start(self, gen):
        raise StrategyRefused("'loud' always refuses: leave it out.")


def note(hook):
    return hookimpl(lambda self, gen: Loud.called.append(hook))


for hook in hook_names(Strategy):
    if hook != "start":
        setattr(Loud, hook, note(hook))


@pytest.fixture
def loud():
    Loud.called.clear()
    return Loud


@pytest.mark.parametrize("executor", ["auto", "sequential"])
def test_no_hook_of_a_neutral_strategy_is_called(loud, executor):
    model, inputs = tiny("llava")
    settings = {"max_new_tokens": 3, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    guard = Guard(model, None, [loud()], executor=executor)
    with pytest.warns(NoEffectWarning, match="'loud' changed no logit"):
        output = guard.generate(**inputs, **settings)
    plain = model.generate(**inputs, **settings)
    assert loud.called == []
    assert torch.equal(output.sequences, plain.sequences)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(output.logits, plain.logits, strict=True))
    (report,) = guard.report.strategies
    assert (report.name, report.had_effect, report.tokens_changed, report.branches) == ("loud", False, 0, ())
    assert report.positions == output.sequences.shape[0] * 3


def test_a_neutral_strategy_leaves_its_neighbours_alone(loud):
    model, inputs = tiny("llava")
    settings = {"max_new_tokens": 3, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    alone, beside = Guard(model, None, [Against()]), Guard(model, None, [loud(), Against()])
    wanted = alone.generate(**inputs, **settings)
    with pytest.warns(NoEffectWarning, match="'loud' changed no logit"):
        got = beside.generate(**inputs, **settings)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(got.logits, wanted.logits, strict=True))
    assert [strategy.had_effect for strategy in beside.report.strategies] == [False, True]


@pytest.mark.parametrize("parameters", [{"low": 0.1}, {"high": 0.9}])
def test_a_strategy_that_is_neutral_in_part_is_called(loud, parameters):
    model, inputs = tiny("llava")
    with pytest.raises(StrategyRefused, match="always refuses"):
        Guard(model, None, [loud(**parameters)]).generate(**inputs, max_new_tokens=2)
    assert loud.called == ["edit_inputs", "search"]


def test_a_strategy_that_states_no_neutral_values_is_called(loud):
    calls = StrategyCalls([made("bare", start=hookimpl(lambda self, gen: loud.called.append("start")))()])
    calls.call("start", None)
    assert loud.called == ["start"]


def test_neutral_values_are_of_parameters():
    with pytest.raises(PluginRejected, match=r"odd\.neutral: no parameter is called 'alpha'"):
        check_strategy(made(neutral={"alpha": 0.0}))


def test_every_hook_is_marked_and_has_a_test():
    unmarked = [name for name in vars(Strategy) if not name.startswith("_") and name not in hook_names(Strategy)]
    assert unmarked == []


def test_hook_start_branches_terms_observe_run_in_this_order():
    called = []

    @dataclass(frozen=True)
    class Watching(Against):
        name: ClassVar[str] = "watching"

        @hookimpl
        def start(self, gen):
            called.append("start")
            assert gen.prompt.has_image
            assert gen.prompt.image_mask.sum() == 25

        @hookimpl
        def branches(self, gen):
            called.append("branches")
            return Against.branches(self, gen)

        @hookimpl
        def terms(self, gen):
            called.append(f"terms {gen.step}")
            return Against.terms(self, gen)

        @hookimpl
        def observe(self, gen):
            called.append("observe")
            assert gen.combined.shape == gen.logits().shape == gen.logits("noised").shape

    model, inputs = tiny("llava")
    Guard(model, None, [Watching()]).generate(**inputs, max_new_tokens=2, do_sample=False)
    assert called == ["start", "branches", "terms 0", "observe", "terms 1", "observe"]
