"""Fitters run a picture once for the answers that follow it, and find what they find on whole prompts."""

import pytest
import torch
from looks import BOTH, continue_with
from lvlm_guard_reweighting import adhh_fitter
from lvlm_guard_steering import nullu_fitter, vti_fitter

from lvlm_guard import testbed
from lvlm_guard.fitting import AnswerStates, compute_hidden_states
from lvlm_guard.testbed.demonstrations import build_demonstrations
from lvlm_guard.testing import ARCHITECTURES, tiny
from lvlm_guard.testing.tiny import placeholders

READS_ON = "paligemma"
"""Whose beginning reads what follows it."""
CASES = [pytest.param(name, marks=[] if name in (*BOTH, READS_ON) else pytest.mark.slow) for name in ARCHITECTURES]
RESTS = ([11, 12, 13, 14], [21, 22, 23, 24, 25, 26], [31, 32, 33], [11, 12, 43, 44])


@pytest.fixture(scope="module")
def model_and_processor():
    return testbed.load()


def build_batches(name):
    """Return a model and batches that follow one picture, another, and the first again."""
    model, inputs = tiny(name)
    brighter = {key: value + 0.5 if value.is_floating_point() else value for key, value in inputs.items()}
    length = 2 + len(placeholders(name))
    return model, [continue_with(shown, length, [rest]) for shown in (inputs, brighter, inputs) for rest in RESTS]


def count_positions(model, lengths):
    layer = model.get_decoder().layers[0]
    return layer.register_forward_hook(lambda _, args, output: lengths.append(args[0].shape[1]))


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_states_of_answers_are_those_of_whole_prompts(name):
    model, batches = build_batches(name)
    states = AnswerStates(model, None)
    expected = [compute_hidden_states(model, batch)[:, -3:] for batch in batches]
    for batch, whole in zip(batches, expected, strict=True):
        error = (states.compute(batch, 3) - whole).abs().max()
        assert float(error / whole.abs().max()) < 2e-5
    assert float((expected[0] - expected[4]).abs().max()) > 0.02  # another picture
    assert float((expected[0] - expected[1]).abs().max()) > 0.05


@pytest.mark.parametrize("name", [*BOTH, READS_ON])
@torch.no_grad()
def test_a_picture_runs_once_for_the_answers_that_follow_it(name):
    model, batches = build_batches(name)
    states, lengths = AnswerStates(model, None), []
    for batch in batches[:2]:
        states.compute(batch, 3)  # the model is tried
    handle = count_positions(model, lengths)
    for batch in batches[2:]:
        states.compute(batch, 3)
    handle.remove()
    picture, rests = 2 + len(placeholders(name)), [len(rest) for rest in RESTS]
    if name == READS_ON:
        assert lengths == [picture + rest for rest in rests[2:] + rests * 2]
        return
    assert lengths == [*rests[2:], picture, *rests, picture, *rests]


@torch.no_grad()
def test_a_prefix_of_another_picture_is_noticed(monkeypatch):
    model, batches = build_batches("llava")
    stale = AnswerStates(model, None)._find_prefix(batches[4])
    monkeypatch.setattr(AnswerStates, "_find_prefix", lambda self, batch: stale)
    states = AnswerStates(model, None)
    for batch in batches[:4]:
        assert torch.equal(states.compute(batch, 3), compute_hidden_states(model, batch)[:, -3:])


@pytest.mark.parametrize("kind", ["nullu", "vti"])
@torch.no_grad()
def test_a_fit_finds_what_it_finds_on_whole_prompts(monkeypatch, model_and_processor, kind):
    model, processor = model_and_processor
    demonstrations, lengths = build_demonstrations(3), []
    handle = count_positions(model, lengths)
    shared = fit(kind, model, processor, demonstrations)
    handle.remove()
    assert [length > 60 for length in lengths[-6:]] == [True, False, False] * 2
    monkeypatch.setattr(
        AnswerStates, "compute", lambda self, batch, count: compute_hidden_states(model, batch)[:, -count:]
    )
    whole = fit(kind, model, processor, demonstrations)
    assert float(whole.abs().max()) > 0.05
    assert torch.allclose(shared, whole, atol=1e-3 * float(whole.abs().max()))


def fit(kind, model, processor, demonstrations):
    """Return what is fitted; of nullu the projections on its first directions, whose signs are nobody's choice."""
    if kind == "vti":
        return vti_fitter.fit_vti(model, processor, demonstrations, trials=1).tensors["decoder"]
    directions = nullu_fitter.fit_nullu(model, processor, demonstrations, rank=1).tensors["directions"]
    return directions.mT @ directions


@pytest.mark.slow
def test_adhh_runs_a_prompt_in_one_row_for_all_heads(model_and_processor):
    model, processor = model_and_processor
    shapes = []
    layer = model.get_decoder().layers[0]
    handle = layer.register_forward_hook(lambda _, args, output: shapes.append(tuple(args[0].shape[:2])))
    with torch.no_grad():
        adhh_fitter.fit_adhh(model, processor, build_demonstrations(2), heads_per_batch=16)
    handle.remove()
    assert {rows for rows, length in shapes if length > 40} == {1}
    assert max(rows for rows, length in shapes if length == 1) == 17
