"""Another stack for a guard or for one call, what a guard says of itself, and copies of it."""

import copy
import pickle
import time

import pytest
import torch
from gold import SUPPRESSED, Against

from lvlm_guard import Guard, InputError, StackError
from lvlm_guard.testing import tiny

SETTINGS = {"max_new_tokens": 5, "do_sample": False, "suppress_tokens": SUPPRESSED}


@pytest.fixture(scope="module")
def scene():
    """A guard, inputs, and three answers that differ; versions of transformers draw other weights from a seed."""
    for seed in range(9):
        model, inputs = tiny("qwen2_vl", seed=seed)
        guard = Guard(model, None, [Against("noised")], executor="sequential")
        answers = [model.generate(**inputs, **SETTINGS), guard.generate(**inputs, **SETTINGS)]
        answers.append(Guard(model, None, [Against("blind")]).generate(**inputs, **SETTINGS))
        if len({tuple(answer[0].tolist()) for answer in answers}) == 3:
            return guard, inputs, answers
    pytest.fail("no power")


def test_a_sibling_answers_with_its_own_stack_and_shares_the_rest(scene):
    guard, inputs, (plain, own, blind) = scene
    sibling = guard.using([Against("blind")])
    assert (sibling.model, sibling.executor) == (guard.model, "sequential")
    assert torch.equal(sibling.generate(**inputs, **SETTINGS), blind)
    assert torch.equal(guard.using(None).generate(**inputs, **SETTINGS), plain)
    assert torch.equal(guard.generate(**inputs, **SETTINGS), own)


def test_reports_of_siblings_are_their_own(scene):
    guard, inputs, _ = scene
    guard.generate(**inputs, **SETTINGS)
    sibling = guard.using(None)
    with pytest.raises(InputError, match="no report"):
        _ = sibling.report
    sibling.generate(**inputs, **SETTINGS)
    assert (len(sibling.report.strategies), len(guard.report.strategies)) == (0, 1)


def test_a_sibling_costs_microseconds(scene):
    stack = scene[0].using([Against("blind")]).stack
    durations = []
    for _ in range(50):
        started = time.perf_counter()
        scene[0].using(stack)
        durations.append(time.perf_counter() - started)
    assert min(durations) < 0.0005


@pytest.mark.parametrize("stack", [None, [], [Against("blind")]])
def test_a_stack_of_one_call_answers_for_that_call_and_is_reported(scene, stack):
    guard, inputs, (plain, own, blind) = scene
    output = guard.generate(**inputs, **SETTINGS, stack=stack)
    assert torch.equal(output, blind if stack else plain)
    assert len(guard.report.strategies) == len(stack or [])
    assert torch.equal(guard.generate(**inputs, **SETTINGS), own)


def test_a_bad_stack_of_one_call_is_refused(scene):
    guard, inputs, _ = scene
    with pytest.raises(StackError):
        guard.generate(**inputs, **SETTINGS, stack="no-such-strategy")


@pytest.mark.parametrize("stack", [None, [Against("noised")]])
def test_an_argument_that_nobody_takes_raises_what_generate_raises(scene, stack):
    guard, inputs, _ = scene
    with pytest.raises(ValueError, match="no_such_argument") as wanted:
        guard.model.generate(**inputs, **SETTINGS, no_such_argument=1)
    with pytest.raises(ValueError, match="no_such_argument") as error:
        guard.using(stack).generate(**inputs, **SETTINGS, no_such_argument=1)
    assert str(error.value) == str(wanted.value)


def test_a_stack_that_is_set_answers_from_then_on(scene):
    guard, inputs, (plain, own, blind) = scene
    changing = guard.using(guard.stack)
    assert torch.equal(changing.generate(**inputs, **SETTINGS), own)
    changing.stack = [Against("blind")]
    assert torch.equal(changing.generate(**inputs, **SETTINGS), blind)
    changing.stack = None
    assert torch.equal(changing.generate(**inputs, **SETTINGS), plain)
    with pytest.raises(StackError):
        changing.stack = "vdc"
    assert not len(changing.stack)


def test_a_copy_is_of_the_guards_own_class(scene):
    class Special(Guard):
        pass

    guard = Special(scene[0].model, None, [Against("blind")])
    assert {type(copy.copy(guard)), type(copy.deepcopy(guard)), type(guard.using(None))} == {Special}


def test_the_repr_names_model_strategies_and_what_is_not_default(scene):
    assert repr(scene[0]) == "Guard(Qwen2VLForConditionalGeneration, stack=[against], executor='sequential')"
    sibling = scene[0].using([Against("blind", weight=2.0)])
    assert "stack=[against(kind='blind', weight=2.0)]" in repr(sibling)
    assert "stack=[]" in repr(scene[0].using(None))


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, lambda guard: pickle.loads(pickle.dumps(guard))])
def test_copies_of_a_guard_answer_alike(scene, make):
    guard, inputs, answers = scene
    twin = make(guard)
    assert torch.equal(twin.generate(**inputs, **SETTINGS), answers[1])
    assert (twin.executor, twin.stack) == (guard.executor, guard.stack)
    assert (twin.model is guard.model) == (make is copy.copy)


def test_what_happens_without_an_image_is_one_of_two_words(scene):
    with pytest.raises(InputError, match="'refuse' or 'plain'"):
        Guard(scene[0].model, None, [], without_image="ignore")
