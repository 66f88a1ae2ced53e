"""The kit itself is tested: an honest strategy is green, and each of eleven saboteurs turns it red."""

import inspect

import pytest
import saboteurs
import torch

import lvlm_guard.guard
from lvlm_guard.forward.decode import GuardedDecode
from lvlm_guard.forward.executors.batched import BatchedExecutor
from lvlm_guard.forward.executors.branch_run import BranchRun
from lvlm_guard.guard import Guard
from lvlm_guard.testing import StrategyContract
from lvlm_guard.testing.contract import Words


def contract_of(strategy, guard_class=Guard):
    class Contract(StrategyContract):
        architectures = ("llava",)

        def guard(self, model, *strategies, **options):
            return guard_class(model, Words(), list(strategies), **options)

    Contract.strategy = strategy
    return Contract()


def red(contract):
    """Names of the checks that fail."""
    return [
        name
        for name, _ in inspect.getmembers(contract, inspect.ismethod)
        if name.startswith("test_") and fails(contract, name)
    ]


def fails(contract, name):
    """Whether one check fails."""
    try:
        getattr(contract, name)()
    except AssertionError:
        return True
    return False


@pytest.fixture
def strategies_see_the_model(monkeypatch):
    """What a strategy must never get: the module. Saboteurs that need it find it in gen.state."""
    run_call = lvlm_guard.guard.run_call

    def run_with_model(call):
        call.gen.state["model"] = call.generate.__self__
        return run_call(call)

    monkeypatch.setattr(lvlm_guard.guard, "run_call", run_with_model)


def test_an_honest_strategy_is_green():
    assert red(contract_of(saboteurs.Honest())) == []


@pytest.mark.parametrize(
    ("saboteur", "check"),
    [
        (saboteurs.LeftoverHook(), "test_the_model_is_left_as_it_was"),
        (saboteurs.BatchWideMean(), "test_rows_of_a_batch_do_not_see_each_other"),
        (saboteurs.MutatedWeight(), "test_the_model_is_left_as_it_was"),
        (saboteurs.UnseededDraw(), "test_the_same_seed_gives_the_same_logits"),
        (saboteurs.NoOp(), "test_it_visibly_changes_the_logits"),
        (saboteurs.LeftBehind(), "test_a_model_on_two_devices_says_the_same"),
        (saboteurs.Waiting(), "test_no_token_waits_for_the_device"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
@pytest.mark.usefixtures("strategies_see_the_model")
def test_a_sabotaging_strategy_turns_the_kit_red(saboteur, check):
    assert fails(contract_of(saboteur), check)


def test_combining_behind_the_processors_turns_the_kit_red():
    assert fails(contract_of(saboteurs.Honest(), saboteurs.LateGuard), "test_processors_see_the_combination")


def test_a_shared_branch_cache_turns_the_kit_red(monkeypatch):
    feed = BranchRun.feed

    def shared(self, run, generated, new, keep, *, first=False):
        logits = feed(self, run, generated, new, keep, first=first)
        is_new = (
            shared.main is not None and shared.main is not shared.done
        )  # some versions leave its making to the model
        if is_new and self.cache is not None:
            shared.done = shared.main
            for mine, other in zip(self.cache.layers, shared.main.layers, strict=True):
                mine.keys, mine.values = other.keys.clone(), other.values.clone()
        return logits

    adopt, shared.main, shared.done = GuardedDecode._adopt, None, None

    def remember(self, cache):
        shared.main = cache
        return adopt(self, cache)

    monkeypatch.setattr(BranchRun, "feed", shared)
    monkeypatch.setattr(GuardedDecode, "_adopt", remember)
    assert fails(contract_of(saboteurs.Honest()), "test_executors_and_recompute_agree")


def test_a_stale_beam_order_turns_the_kit_red(monkeypatch):
    monkeypatch.setattr(BranchRun, "reorder", lambda self, index: None)
    assert fails(contract_of(saboteurs.Honest()), "test_executors_and_recompute_agree")


def test_ignored_padding_turns_the_kit_red(monkeypatch):
    mask = BatchedExecutor._mask
    monkeypatch.setattr(
        BatchedExecutor,
        "_mask",
        lambda self, tokens: None if (m := mask(self, tokens)) is None else torch.ones_like(m),
    )
    assert fails(contract_of(saboteurs.Honest()), "test_rows_of_a_batch_do_not_see_each_other")
