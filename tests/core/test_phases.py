"""A call passes through frozen values, and each phase can be looked at before the next one runs."""

import dataclasses

import pytest
import torch
from gold import Against

from lvlm_guard.call.answers import finish_output
from lvlm_guard.call.asking import build_asked_call
from lvlm_guard.call.decoding import decode
from lvlm_guard.call.planning import plan_call
from lvlm_guard.call.preparing import prepare_branches
from lvlm_guard.call.reporting import report_call
from lvlm_guard.call.run import run_call
from lvlm_guard.host.plugins import StrategyCalls
from lvlm_guard.host.stack import Stack
from lvlm_guard.request.requests import Request
from lvlm_guard.testing import tiny

SETTINGS = {"max_new_tokens": 3, "do_sample": False}


def ask(model, inputs, stack):
    request = Request(dict(inputs), dict(SETTINGS), model.config, None, None, model.generation_config)
    return build_asked_call(model, model.generate, request, StrategyCalls(Stack.of(stack).strategies), "auto")


@torch.no_grad()
def phases(model, inputs, stack):
    call = ask(model, inputs, stack)
    planned = plan_call(call)
    with planned.interventions.installed(planned.main, call.gen):
        prepared = prepare_branches(planned)
        decoded = decode(prepared)
    return call, planned, prepared, decoded


def test_the_phases_give_what_the_call_gives():
    model, inputs = tiny("llava")
    output, report = run_call(ask(model, inputs, [Against("longer")]))
    *_, decoded = phases(model, inputs, [Against("longer")])
    assert torch.equal(decoded.output, output)
    assert dataclasses.replace(report_call(decoded, finish_output(decoded)), seconds=report.seconds) == report


def test_every_phase_is_frozen():
    model, inputs = tiny("llava")
    for phase in phases(model, inputs, [Against("longer")]):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(phase, dataclasses.fields(phase)[0].name, None)


def test_planning_runs_no_forward_and_preparing_none_either():
    model, inputs = tiny("llava")
    forwards = []
    handle = model.get_decoder().register_forward_hook(lambda *_: forwards.append(1))
    decode(prepare_branches(plan_call(ask(model, inputs, [Against("longer")]))))
    assert len(forwards) > 4, "a first batched decode tries the model"
    forwards.clear()
    planned = plan_call(ask(model, inputs, [Against("longer")]))
    assert list(planned.plan.branches) == ["longer"]
    assert planned.plan.branch_keys == {"against": ("longer",)}
    assert (planned.search, planned.candidates, planned.prompt_runs.keys) == (None, 1, [])
    prepared = prepare_branches(planned)
    assert list(prepared.branches) == ["longer"]
    assert prepared.branches["longer"].length == prepared.main.length + 3
    assert forwards == []
    decode(prepared)
    handle.remove()
    assert len(forwards) == 2 + 2
    assert "forward" not in vars(model)


def test_prompts_that_a_strategy_runs_are_counted_as_prefill():
    model, inputs = tiny("llava")
    _, planned, _, decoded = phases(model, inputs, "vsv")
    assert planned.prompt_runs.keys[0] == "main"
    assert len(planned.prompt_runs.keys) == 2
    assert report_call(decoded, finish_output(decoded)).forwards.prefill == 1 + 2
