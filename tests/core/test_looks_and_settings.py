"""Settings of a call, layouts of prompts and surroundings under which a look answers as whole prompts do, or says why not."""

import pytest
import torch
from coloured_pictures import draw_pictures
from looks import BOTH, DETAILS, RESTS, SETTINGS, TOLERANCE, build, continue_with, error_between
from torch.nn.functional import pad
from transformers import LogitsProcessorList, StoppingCriteriaList

from lvlm_guard import Guard, InputError
from lvlm_guard.forward.executors.batch_trial import HALVES, measure_coarseness
from lvlm_guard.testing.processing import TinyProcessor
from lvlm_guard.testing.tiny import tiny

pytestmark = pytest.mark.filterwarnings("ignore::lvlm_guard.errors.NoEffectWarning")


def pad_more(batch, count):
    """Return a batch with more padding than it needs."""
    shape = batch["input_ids"].shape
    return {name: pad(value, (count, 0)) if value.shape == shape else value for name, value in batch.items()}


def compare(guard, inputs, batch, **settings):
    """Return what guard and look generate from a batch, by a look that has answered before."""
    settings = {"do_sample": False, **settings}
    expected = guard.generate(**batch, **settings)
    with guard.looking(inputs) as look:
        return expected, look.generate(**batch, **settings)


MOST, LEAST = {"max_length": 6}, {"min_length": 6, "max_new_tokens": 8}


@pytest.mark.parametrize(
    ("name", "padding", "limit"),
    [
        ("llava", 3, MOST),
        ("gemma3", 0, MOST),
        ("gemma3", 3, LEAST),
        pytest.param("llava", 3, LEAST, marks=pytest.mark.slow),
        pytest.param("gemma3", 0, LEAST, marks=pytest.mark.slow),
        pytest.param("gemma3", 3, MOST, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_lengths_count_prompts_as_they_were_passed(name, padding, limit):
    guard, inputs, length = build(name, "vcd")
    batch = pad_more(continue_with(inputs, length, RESTS["ragged"]), padding)
    width = batch["input_ids"].shape[1]
    free = guard.generate(**batch, max_new_tokens=8, do_sample=False)
    limits = {name: value + width if name != "max_new_tokens" else value for name, value in limit.items()}
    ends = sorted(set(free[:, width:][:, :3].flatten().tolist()))  # without a least length, answers end early
    expected, output = compare(guard, inputs, batch, **limits, eos_token_id=ends, pad_token_id=0)
    assert torch.equal(output, expected)
    without = guard.generate(**batch, max_new_tokens=8, do_sample=False, eos_token_id=ends, pad_token_id=0)
    assert limit.keys() == {"max_length"} or not torch.equal(expected, without)


@pytest.mark.parametrize("name", ["llava", "gemma3"])
def test_answers_that_end_at_different_tokens_are_padded_alike(name):
    guard, inputs, length = build(name, "vcd")
    batch = continue_with(inputs, length, [*RESTS["ragged"], [15, 16, 17, 18]])
    answers = guard.generate(**batch, max_new_tokens=8, do_sample=False)[:, batch["input_ids"].shape[1] :]
    for ends in (int(answers[0, 2]), [int(answers[0, 2]), int(answers[1, 4])]):
        expected, output = compare(guard, inputs, batch, max_new_tokens=8, eos_token_id=ends, pad_token_id=7)
        assert torch.equal(output, expected)
        assert bool((output == 7).any())


class PrefersByPrompt:
    """A processor of the caller's that reads the last tokens of the prompt, in order."""

    def __call__(self, ids, scores):
        weights = torch.arange(1, 9)
        favoured = ((ids[:, -8:] * weights).sum(1) % 50 + 10)[:, None]
        return scores.scatter_add(1, favoured, torch.full((len(ids), 1), 20.0))


class StopsByPrompt:
    """Criteria of the caller's that stop after one to three tokens, by the prompt of the last row."""

    def __init__(self, width):
        self.width = width

    def __call__(self, ids, scores, **_):
        allowed = 1 + int((ids[-1, self.width - 8 : self.width] * torch.arange(1, 9)).sum()) % 3
        return torch.full((len(ids),), ids.shape[1] - self.width >= allowed)


READERS = {
    "processor": lambda batch: {"logits_processor": LogitsProcessorList([PrefersByPrompt()])},
    "criteria": lambda batch: {"stopping_criteria": StoppingCriteriaList([StopsByPrompt(batch["input_ids"].shape[1])])},
    "constraint": lambda batch: {"prefix_allowed_tokens_fn": lambda row, ids: [int(ids[-5]) + 5, int(ids[-4]) + 5]},
}


@pytest.mark.parametrize(
    ("kind", "reader"),
    [
        pytest.param(kind, reader, marks=[] if kind == "ragged" else pytest.mark.slow)
        for kind in ("ragged", "rows")
        for reader in READERS
    ],
)
def test_functions_of_the_call_see_prompts_as_they_were_passed(kind, reader):
    guard, inputs, length = build("llava", "vcd")
    batch = continue_with(inputs, length, RESTS[kind])
    expected, output = compare(guard, inputs, batch, max_new_tokens=4, **READERS[reader](batch))
    assert torch.equal(output, expected)
    is_whole = "stand otherwise behind a look" in guard.report.prompts["main"]
    assert is_whole is (kind == "ragged")
    assert not torch.equal(expected, guard.generate(**batch, **SETTINGS))


@pytest.mark.parametrize("name", ["bad_words_ids", "sequence_bias"])
def test_a_sequence_that_begins_at_the_picture_is_found_behind_it(name):
    guard, inputs, length = build("llava", "vcd")
    batch = continue_with(inputs, length, RESTS["ragged"])
    free = guard.generate(**batch, **SETTINGS)
    last, first_token = int(inputs["input_ids"][0, length - 1]), int(free[2, batch["input_ids"].shape[1]])
    sequence = [last, *RESTS["ragged"][2], first_token]
    setting = [sequence] if name == "bad_words_ids" else {tuple(sequence): -50.0}
    expected, output = compare(guard, inputs, batch, **{**SETTINGS, name: setting})
    assert torch.equal(output, expected)
    assert not torch.equal(expected, free)


@pytest.mark.parametrize("name", BOTH)
def test_a_look_may_be_opened_with_padding(name):
    guard, inputs, length = build(name, [{"name": "vsv", "params": {"strength": 2.0}}, "vcd"])
    batch = continue_with(inputs, length, RESTS["rows"])
    expected = guard.generate(**batch, **SETTINGS, **DETAILS)
    with guard.looking(pad_more(inputs, 3)) as look:
        for _ in range(2):
            output = look.generate(**batch, **SETTINGS, **DETAILS)
            assert error_between(output.logits, expected.logits) < TOLERANCE


def mask_token(batch, at):
    mask = batch["attention_mask"].clone()
    mask[:, at] = 0
    return {**batch, "attention_mask": mask}


def test_tokens_that_are_masked_between_others_are_refused():
    guard, inputs, length = build("llava", "vcd")
    batch = continue_with(inputs, length, RESTS["one"])
    with pytest.raises(InputError, match="masks tokens behind others"), guard.looking(mask_token(inputs, 5)):
        pass
    with guard.looking(inputs) as look, pytest.raises(InputError, match="masks tokens behind others"):
        look.generate(**mask_token(batch, -2), max_new_tokens=1)


def test_a_look_says_where_there_is_no_question():
    model, _ = tiny("llava")
    with Guard(model, TinyProcessor("llava"), "vcd").looking(draw_pictures(1)[0]) as look:
        assert look.ask([]) == []
        for ask in (look.first_logits, look.inputs):
            with pytest.raises(InputError, match="no question: give at least one"):
                ask([])
        for empty in ("", ["w17", ""]):
            with pytest.raises(InputError, match="put a question behind it"):
                look.ask(empty, max_new_tokens=1)
        look.ask("w17", max_new_tokens=1)


def test_autocast_makes_a_look_stale():
    guard, inputs, length = build("llava", "vcd")
    batch = continue_with(inputs, length, RESTS["rows"])
    expected = guard.generate(**batch, **SETTINGS)
    with torch.autocast("cpu", torch.bfloat16):
        halved = guard.generate(**batch, **SETTINGS, **DETAILS)
        with guard.looking(inputs) as look:
            assert torch.equal(look.generate(**batch, **SETTINGS), halved.sequences)
    with guard.looking(inputs) as look:
        with torch.autocast("cpu", torch.bfloat16):
            look.generate(**batch, max_new_tokens=1)
        with pytest.raises(InputError, match="model was changed while the guard looked"):
            look.generate(**batch, **SETTINGS)
    with guard.looking(inputs) as look:
        assert torch.equal(look.generate(**batch, **SETTINGS), expected)


def test_a_model_under_autocast_rounds_as_its_halves_do():
    model = tiny("llava")[0]
    assert measure_coarseness(model) == 1
    with torch.autocast("cpu", torch.bfloat16):
        assert measure_coarseness(model) == HALVES[torch.bfloat16]
    assert measure_coarseness(model.to(torch.float16)) == HALVES[torch.float16]


def test_a_model_made_in_inference_mode_can_look():
    with torch.inference_mode():
        guard, inputs, length = build("llava", "vcd")
    batch = continue_with(inputs, length, RESTS["rows"])
    expected = guard.generate(**batch, **SETTINGS)
    with guard.looking(inputs) as look:
        with torch.inference_mode():
            look.generate(**batch, max_new_tokens=1)
        assert torch.equal(look.generate(**batch, **SETTINGS), expected)
        with torch.inference_mode():
            guard.model.get_decoder().layers[0].mlp.down_proj.weight.mul_(1.5)
        with pytest.raises(InputError, match="model was changed while the guard looked"):
            look.generate(**batch, **SETTINGS)


@pytest.mark.parametrize("attached", ["vdd", "vcd", None])
def test_a_look_answers_by_its_own_stack_whoever_is_attached(attached):
    guard, inputs, length = build("llava", "vcd")
    batch = continue_with(inputs, length, RESTS["ragged"])
    expected, other = guard.generate(**batch, **SETTINGS), guard.using(attached)
    of_other = other.generate(**batch, **SETTINGS)
    with other.attached(), guard.looking(inputs) as look:
        assert torch.equal(look.generate(**batch, **SETTINGS), expected)
        assert torch.equal(guard.model.generate(**batch, **SETTINGS), of_other)
        assert torch.equal(look.generate(**batch, **SETTINGS), expected)
    assert attached == "vcd" or not torch.equal(of_other, expected)


def test_the_first_call_on_a_look_draws_as_a_whole_one():
    guard, inputs, length = build("llava", "vcd")
    batch = continue_with(inputs, length, RESTS["ragged"])
    settings = {"max_new_tokens": 6, "do_sample": True, "temperature": 1.5, "num_return_sequences": 2}
    torch.manual_seed(5)
    expected = guard.generate(**batch, **settings)
    torch.manual_seed(5)
    with guard.looking(inputs) as look:
        assert torch.equal(look.generate(**batch, **settings), expected)
