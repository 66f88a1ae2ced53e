"""Guards attached to one model: blocks that overlap, end out of order, leak, raise, nest, and copies in between."""

import contextlib
import copy
import functools
import gc
import threading

import pytest
import torch
from gold import SUPPRESSED, Against

from lvlm_guard import Guard
from lvlm_guard.testing import tiny

SETTINGS = {"max_new_tokens": 5, "do_sample": False, "suppress_tokens": SUPPRESSED}


class Scene:
    """A model, two guards, and what each answers."""

    def __init__(self):
        self.model, self.inputs = tiny("llava")
        self.first = Guard(self.model, None, [Against("noised")])
        self.second = Guard(self.model, None, [Against("blind")])
        callers = {"plain": self.model, "first": self.first, "second": self.second}
        self.answers = {name: caller.generate(**self.inputs, **SETTINGS) for name, caller in callers.items()}
        assert len({tuple(answer[0].tolist()) for answer in self.answers.values()}) == 3, "no power"

    def who(self, caller=None):
        answer = (caller or self.model).generate(**self.inputs, **SETTINGS)
        return next(name for name, wanted in self.answers.items() if torch.equal(answer, wanted))


@pytest.fixture
def scene():
    scene = Scene()
    yield scene
    assert scene.who() == "plain"
    assert not {"generate", "forward", "__getstate__"} & set(vars(scene.model))


def test_the_youngest_that_still_stands_answers(scene):
    with scene.first.attached():
        with scene.second.attached():
            assert scene.who() == "second"
        assert scene.who() == "first"


def test_blocks_may_end_out_of_order(scene):
    first, second = scene.first.attached(), scene.second.attached()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert scene.who() == "second"
    second.__exit__(None, None, None)
    assert scene.who() == "plain"


def test_one_guard_may_be_attached_twice(scene):
    with scene.first.attached():
        with scene.first.attached():
            assert scene.who() == "first"
        assert scene.who() == "first"


def test_a_guard_answers_with_its_own_stack_whatever_is_attached(scene):
    with scene.first.attached():
        assert scene.who(scene.second) == "second"
        assert scene.who(scene.first) == "first"
        assert scene.who(scene.second.using(None)) == "plain"


def test_blocks_of_two_threads_may_overlap(scene):
    entered, leave, seen = threading.Event(), threading.Event(), []

    def work():
        with scene.second.attached():
            entered.set()
            leave.wait(20)
            seen.append(scene.who())

    worker = threading.Thread(target=work)
    with scene.first.attached():
        worker.start()
        entered.wait(20)
        assert scene.who() == "second"
    assert scene.who() == "second"
    leave.set()
    worker.join()
    assert seen == ["second"]


def test_many_threads_attach_and_leave_without_a_trace(scene):
    wrong = []

    def work(guard):
        for _ in range(10):
            with guard.attached():
                if "generate" not in vars(scene.model):
                    wrong.append(guard)

    threads = [threading.Thread(target=work, args=(guard,)) for guard in (scene.first, scene.second) * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_generator_that_leaks_detaches_when_it_is_dropped(scene):
    def leaking():
        with scene.first.attached():
            yield scene.who()

    generator = leaking()
    assert next(generator) == "first"
    with scene.second.attached():
        assert scene.who() == "second"
    assert scene.who() == "first"
    del generator
    gc.collect()


def test_exceptions_and_exit_stacks_detach(scene):
    with pytest.raises(RuntimeError), scene.first.attached():
        raise RuntimeError
    with contextlib.ExitStack() as stack:
        stack.enter_context(scene.first.attached())
        stack.enter_context(scene.second.attached())
        assert scene.who() == "second"


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy])
def test_a_copy_of_an_attached_model_is_not_guarded(scene, make):
    with scene.first.attached():
        twin = make(scene.model)
        assert "generate" not in vars(twin)
        assert scene.who(twin) == "plain"
    assert scene.who(twin) == "plain"


def test_a_generate_that_somebody_wrapped_in_between_is_guarded_once(scene):
    with scene.first.attached():
        old = scene.model.generate
        scene.model.generate = functools.update_wrapper(functools.partial(old), old)
        assert scene.who() == "first"
        assert scene.who(scene.second) == "second"
        with scene.second.attached():
            assert scene.who() == "second"
    assert scene.who() == "plain"
    del scene.model.generate


def test_another_model_is_guarded_within_a_guarded_call(scene):
    other = Scene()
    seen = []

    def ask_other(*_):
        if not seen:
            seen.append(other.who())

    handle = scene.model.get_decoder().register_forward_pre_hook(ask_other)
    with other.first.attached(), scene.first.attached():
        assert scene.who() == "first"
    handle.remove()
    assert seen == ["first"]
