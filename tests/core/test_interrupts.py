"""An interrupt at any line of what puts something on the model, or takes it off, leaves a model that answers exactly."""

import gc
import sys

import pytest
import torch
from gold import SUPPRESSED
from mechanisms import MECHANISMS

from lvlm_guard import Guard
from lvlm_guard.call import attachments
from lvlm_guard.forward import installations, wrapper
from lvlm_guard.forward.caches import growing
from lvlm_guard.forward.interventions import attention, compiled, layers, vision
from lvlm_guard.testing import tiny

WATCHED = {
    module.__file__ for module in (installations, wrapper, attachments, growing, attention, compiled, layers, vision)
}
SETTINGS = {"max_new_tokens": 2, "do_sample": False, "suppress_tokens": SUPPRESSED}


class Interrupt:
    """Raises KeyboardInterrupt at the first visit of one line; without a line, notes every line that is visited."""

    def __init__(self, line=None):
        self.line, self.visited = line, set()

    def __call__(self, frame, event, _):
        if frame.f_code.co_filename not in WATCHED:
            return None
        if event == "line":
            here = (frame.f_code.co_filename, frame.f_lineno)
            self.visited.add(here)
            if here == self.line:
                self.line = None
                raise KeyboardInterrupt
        return self

    def run(self, function):
        sys.settrace(self)
        try:
            return function()
        finally:
            sys.settrace(None)


@pytest.fixture
def small_heap():
    """Let collections look at what a test makes alone, which is all it asks about."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("small_heap")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "mechanism", ["branch", *(pytest.param(name, marks=pytest.mark.slow) for name in ("attention", "hidden", "vision"))]
)
def test_calls_after_an_interrupt_are_exact(mechanism, model_and_inputs):
    model, inputs = model_and_inputs
    guard = Guard(model, None, MECHANISMS[mechanism])

    def call():
        with guard.attached():
            return model.generate(**inputs, **SETTINGS)

    plain, guarded = model.generate(**inputs, **SETTINGS), call()
    watch = Interrupt()
    watch.run(call)
    assert len(watch.visited) > 40
    for line in sorted(watch.visited):
        try:
            Interrupt(line).run(call)
        except KeyboardInterrupt:  # the traceback still holds what the call held
            assert torch.equal(model.generate(**inputs, **SETTINGS), plain), line
            assert torch.equal(guard.generate(**inputs, **SETTINGS), guarded), line
        gc.collect()
        assert torch.equal(model.generate(**inputs, **SETTINGS), plain), line
    assert torch.equal(call(), guarded)
    assert not {"forward", "generate", "__getstate__"} & set(vars(model))
    assert not any(
        isinstance(hook, installations.Hook) for part in model.modules() for hook in part._forward_hooks.values()
    )


@pytest.fixture(scope="module")
def model_and_inputs():
    return tiny("llava")
