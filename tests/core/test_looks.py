"""Looks: prompts that go on from a beginning that ran once answer as whole prompts do."""

import contextlib
import weakref

import pytest
import torch
from coloured_pictures import draw_pictures
from looks import (
    BOTH,
    DETAILS,
    MAKES_POSITIONS,
    RESTS,
    SETTINGS,
    STRATEGIES,
    TOLERANCE,
    build,
    continue_with,
    error_between,
    run_both,
)

from lvlm_guard import Guard, ModelRefused, ModeRefused, Refused
from lvlm_guard.call.looks import preparation, unedited
from lvlm_guard.forward.layouts import DecodeLayouts
from lvlm_guard.forward.prefixes import continuing, continuing_inputs, run_prefix
from lvlm_guard.testbed.model import load as load_bundled
from lvlm_guard.testing.processing import TinyProcessor
from lvlm_guard.testing.tiny import tiny

pytestmark = pytest.mark.filterwarnings("ignore::lvlm_guard.errors.NoEffectWarning")
QUESTIONS = ["is a dog here", "is w17 w18 w19 here or not", "cat"]
EXACT = ("plain", "vcd", "m3id", "vdd")


def effect_on_logits(guard, batch, expected):
    """The largest change of a logit by the stack, of tokens that it did not remove."""
    plain = guard.using(None).generate(**batch, **SETTINGS, **DETAILS)
    pairs = zip(expected.logits, plain.logits, strict=True)
    return max(float((torch.where(left > -1e4, left, right) - right).abs().max()) for left, right in pairs)


@pytest.mark.parametrize("stack", EXACT)
@pytest.mark.parametrize("name", BOTH)
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
    assert effect_on_logits(guard, batch, expected) > 0.1


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


ARCHITECTURES_OF_LOOKS = (*BOTH, "gemma3", "mllama", "idefics3", "internvl")
POWER = 0.02
WHOLE = {"memvr", "vsv"}
NEED_SEVERAL_TOKENS = {"sid", "avisc", "memvr"}


@pytest.mark.slow
@pytest.mark.parametrize("pictures", [1, 2])
@pytest.mark.parametrize("stack", STRATEGIES)
@pytest.mark.parametrize("name", ARCHITECTURES_OF_LOOKS)
def test_every_strategy_answers_on_a_look_as_on_whole_prompts(name, stack, pictures):
    if name == "mllama" and stack in NEED_SEVERAL_TOKENS:
        pytest.skip("its images lie beside the prompt")
    entry = STRATEGIES[stack]
    guard, inputs, length = build(name, [entry] if isinstance(entry, dict) else entry, pictures)
    for kind, rests in RESTS.items():
        grouped = kind == "ragged" and (name == "gemma3" or stack in ("sid", "avisc"))
        details = {} if grouped else DETAILS
        expected, output = run_both(guard, inputs, length, rests, **details)
        if grouped:
            assert torch.equal(output, expected)
        else:
            assert torch.equal(output.sequences, expected.sequences)
            assert error_between(output.logits, expected.logits) < TOLERANCE
        assert (guard.report.prompts["main"] == "shared") is (stack not in WHOLE)
        batch = continue_with(inputs, length, rests)
        if stack != "plain" and kind == "one":
            assert effect_on_logits(guard, batch, expected) > POWER


@pytest.mark.parametrize("pictures", [3, pytest.param(4, marks=pytest.mark.slow), 6])
@pytest.mark.parametrize("stack", ["plain", "vcd", "vdd"])
def test_a_look_may_be_longer_than_a_sliding_window(stack, pictures):
    guard, inputs, length = build("gemma3", STRATEGIES[stack], pictures)
    window = guard.model.config.text_config.sliding_window
    for rests in RESTS.values():
        expected, output = run_both(guard, inputs, length, rests)
        assert torch.equal(output, expected)
        if len(rests) == 1:
            expected, output = run_both(guard, inputs, length, rests, **DETAILS)
            assert error_between(output.logits, expected.logits) < TOLERANCE
            assert output.sequences.shape[1] > window + 1
    assert guard.report.prompts["main"] == "shared"


@pytest.mark.parametrize("name", [*BOTH, "gemma3", pytest.param("internvl", marks=pytest.mark.slow)])
def test_pictures_and_texts_are_answered_as_by_chat(name):
    model, _ = tiny(name)
    guard, picture = Guard(model, TinyProcessor(name), "vcd+ritual"), draw_pictures(1)[0]
    settings = {"max_new_tokens": 5, "do_sample": False}
    with guard.looking(picture) as look:
        answers = look.ask(QUESTIONS, **settings)
        assert set(guard.report.prompts.values()) == {"shared"}
        assert look.ask(QUESTIONS[0], **settings) == answers[0]
        asked = [[{"role": "user", "content": question}] for question in QUESTIONS]
        assert len(look.chat(asked, **settings)) == 3
    assert answers == [guard.chat(message(picture, question), **settings) for question in QUESTIONS]


def message(picture, question):
    return [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": question}]}]


def test_questions_are_written_without_the_pictures_again():
    model, processor = load_bundled()
    guard, picture = Guard(model, processor, "vcd"), draw_pictures(1)[0].resize((64, 64))
    processed = []
    original = processor.image_processor
    processor.image_processor = Counting(original, processed)
    settings = {"max_new_tokens": 2, "do_sample": False}
    with guard.looking(picture) as look:
        count = len(processed)
        answers = look.ask(QUESTIONS, **settings)
        assert len(processed) == count
    assert answers == [guard.chat(message(picture, question), **settings) for question in QUESTIONS]


class Counting:
    """An image processor that counts its calls."""

    def __init__(self, inner, calls):
        self.__dict__.update(inner=inner, calls=calls)

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def __call__(self, *args, **kwargs):
        self.calls.append(1)
        return self.inner(*args, **kwargs)


WAYS = [
    {"num_beams": 3},
    {"num_beams": 2, "num_return_sequences": 2},
    {"do_sample": True, "temperature": 1.5},
    {"do_sample": True, "num_return_sequences": 3, "temperature": 1.5},
    {"do_sample": True, "num_beams": 2},
    {"repetition_penalty": 1.5},
    {"no_repeat_ngram_size": 2},
]
OFTEN = [("llava", 1), ("llava", 3), ("llava", 4), ("llava", 6), ("qwen2_vl", 1), ("qwen2_vl", 3)]
"""Ways that are tried in every run: beams, samples, both, and one that reads the prompt."""


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        pytest.param(name, settings, marks=[] if (name, number) in OFTEN else pytest.mark.slow, id=f"{name}-{settings}")
        for name in BOTH
        for number, settings in enumerate(WAYS)
    ],
)
def test_every_way_to_choose_tokens_is_that_of_whole_prompts(name, settings):
    guard, inputs, length = build(name, "vcd+vdd")
    for rests in (RESTS["rows"], RESTS["ragged"]):
        batch = continue_with(inputs, length, rests)
        torch.manual_seed(3)
        expected = guard.generate(**batch, **{**SETTINGS, **settings})
        with guard.looking(inputs) as look:
            look.generate(**batch, max_new_tokens=1)
            torch.manual_seed(3)
            assert torch.equal(look.generate(**batch, **{**SETTINGS, **settings}), expected)


def test_groups_of_one_length_are_put_together_again():
    guard, inputs, length = build("gemma3", "vcd")
    batch = continue_with(inputs, length, [*RESTS["ragged"], [15, 16, 17, 18]])
    settings = {**SETTINGS, "num_beams": 2, "num_return_sequences": 2}
    expected = guard.generate(**batch, **settings)
    whole = guard.report
    with guard.looking(inputs) as look:
        assert torch.equal(look.generate(**batch, **settings), expected)
    report = guard.report
    assert [(entry.row, entry.request) for entry in report.requests] == [(row, row // 2) for row in range(8)]
    assert (report.rows, report.tokens) == (whole.rows, whole.tokens)
    assert report.strategies[0].positions == whole.strategies[0].positions
    with guard.looking(inputs) as look, pytest.raises(ModeRefused, match="groups of one length"):
        look.generate(**batch, **SETTINGS, **DETAILS)


STRONG_PAI = [{"name": "pai", "params": {"alpha": 20.0, "layers": [0, 2]}}]


def test_a_prefix_that_predicts_is_noticed(monkeypatch):
    lay_out = DecodeLayouts.lay_out
    monkeypatch.setattr(DecodeLayouts, "lay_out", lambda self, keys, new, **_: lay_out(self, keys, new))
    guard, inputs, length = build("llava", STRONG_PAI)
    with guard.looking(inputs) as look, pytest.raises(ModelRefused, match="logits of a whole prompt"):
        look.generate(**continue_with(inputs, length, RESTS["one"]), **SETTINGS)


def with_positions(change):
    def continue_so(*args):
        inputs = continuing_inputs(*args)
        positions = inputs.pop("position_ids")
        return inputs if change is None else {**inputs, "position_ids": positions + change}

    return continue_so


@pytest.mark.skipif(not MAKES_POSITIONS, reason="older versions make them inside the forward")
@pytest.mark.parametrize(("name", "change"), [("llava", 1), ("qwen2_vl", 1), ("qwen2_vl", None)])
def test_positions_of_another_prompt_are_noticed(name, change, monkeypatch):
    """Without positions of its own, Qwen goes on from those of whoever ran last: here the branch without the image."""
    monkeypatch.setattr(preparation, "continuing_inputs", with_positions(change))
    guard, inputs, length = build(name, "vdd")
    with guard.looking(inputs) as look, pytest.raises(ModelRefused, match="logits of a whole prompt"):
        look.generate(**continue_with(inputs, length, RESTS["one"]), **SETTINGS)


def test_a_cache_that_is_not_copied_is_noticed(monkeypatch):
    monkeypatch.setattr(continuing, "copy_rows", lambda cache, rows: cache)
    guard, inputs, length = build("llava", "vcd")
    batch = continue_with(inputs, length, RESTS["one"])
    expected = guard.generate(**batch, **SETTINGS)
    with guard.looking(inputs) as look, contextlib.suppress(Refused, RuntimeError, ValueError, IndexError):
        look.generate(**batch, **SETTINGS)
        assert not torch.equal(look.generate(**batch, **SETTINGS), expected)


def run_others(prepared, *args):
    """A prefix of other tokens in front of the picture."""
    prepared.input_ids[:, 0] += 1
    return run_prefix(prepared, *args)


def run_vsv(guard, inputs, length):
    """Return the positions that forwards of three calls on a look ran, and the logits of the last."""
    batch, positions = continue_with(inputs, length, RESTS["rows"]), []
    layer = guard.model.get_decoder().layers[0]
    handle = layer.register_forward_hook(lambda _, args, output: positions.append(args[0].shape[1]))
    with guard.looking(inputs) as look:
        outputs = [look.generate(**batch, **SETTINGS, **DETAILS) for _ in range(3)]
    handle.remove()
    return positions, outputs[-1].logits


@pytest.mark.parametrize("name", [*BOTH, pytest.param("gemma3", marks=pytest.mark.slow)])
def test_states_of_the_prompt_that_a_strategy_asks_for_go_on_from_the_look(name, monkeypatch):
    guard, inputs, length = build(name, [STRATEGIES["vsv"]])
    expected = guard.generate(**continue_with(inputs, length, RESTS["rows"]), **SETTINGS, **DETAILS)
    positions, logits = run_vsv(guard, inputs, length)
    assert error_between(logits, expected.logits) < TOLERANCE
    last = positions[-(3 + SETTINGS["max_new_tokens"] - 1) :]
    assert last[:3] == [4, last[1], length + 4]  # the picture runs in main alone
    assert last[1] < length + 4
    monkeypatch.setattr(unedited, "_verdicts", weakref.WeakKeyDictionary())
    monkeypatch.setattr(unedited, "run_prefix", run_others)
    positions, logits = run_vsv(guard, inputs, length)  # a wrong prefix is noticed, and prompts run whole
    assert error_between(logits, expected.logits) < TOLERANCE
    assert positions[-(3 + SETTINGS["max_new_tokens"] - 1) :][0] == length + 4
