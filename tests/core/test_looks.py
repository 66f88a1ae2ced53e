"""Looks: prompts that go on from a beginning that ran once answer as whole prompts do."""

import pytest
import torch
from looks import DETAILS, RESTS, SETTINGS, TOLERANCE, build, continue_with, error_between, run_both

from lvlm_guard import Guard
from lvlm_guard.testing.tiny import tiny

pytestmark = pytest.mark.filterwarnings("ignore::lvlm_guard.errors.NoEffectWarning")
EXACT = ("plain", "vcd", "m3id", "vdd")


def effect(guard, batch, expected):
    plain = guard.using(None).generate(**batch, **SETTINGS, **DETAILS)
    return error_between([torch.where(one > -1e4, one, 0) for one in plain.logits], plain.logits), max(
        float((torch.where(one > -1e4, one, other) - other).abs().max())
        for one, other in zip(expected.logits, plain.logits, strict=True)
    )


@pytest.mark.parametrize("stack", EXACT)
@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_questions_on_a_look_are_answered_as_whole_prompts_are(name, stack):
    guard, inputs, length = build(name, stack)
    for rests in RESTS.values():
        expected, output = run_both(guard, inputs, length, rests, **DETAILS)
        assert torch.equal(output.sequences, expected.sequences)
        assert error_between(output.logits, expected.logits) < TOLERANCE
    assert set(guard.report.prompts.values()) == {"shared"}


@pytest.mark.parametrize("stack", EXACT[1:])
def test_the_comparison_has_power(stack):
    guard, inputs, length = build("llava", stack)
    batch = continue_with(inputs, length, RESTS["one"])
    expected = guard.generate(**batch, **SETTINGS, **DETAILS)
    assert effect(guard, batch, expected)[1] > 0.1


def test_the_beginning_runs_once():
    guard, inputs, length = build("llava", "vcd+vdd")
    positions, pictures = [], []
    guard.model.get_decoder().layers[0].register_forward_hook(
        lambda _, args, output: positions.append(args[0].shape[:2])
    )
    guard.model.model.vision_tower.register_forward_hook(lambda *_: pictures.append(1))
    batch = continue_with(inputs, length, RESTS["rows"])
    with guard.looking(inputs) as look:
        look.generate(**batch, max_new_tokens=1)
        positions.clear(), pictures.clear()
        look.generate(**batch, max_new_tokens=1)
        assert pictures == []
        assert positions == [(2, 4)] * 4
    guard.generate(**batch, max_new_tokens=1)
    assert len(pictures) == 2
    assert positions[4:] == [(2, 31), (2, 31), (2, 6), (2, 7)]


def test_a_model_without_a_guarded_stack_can_look():
    model, inputs = tiny("llava")
    guard = Guard(model, stack=None)
    expected, output = run_both(guard, inputs, 27, RESTS["rows"])
    assert torch.equal(output, expected)
    assert guard.report.prompts == {"main": "shared"}
