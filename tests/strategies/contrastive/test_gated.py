"""z + 1[m < margin] (weights, biases and restrictions of the gated strategies), m = best minus second-best logit of main."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pytest
import torch
from bundled import BundledContract
from contrast_formulas import measure_effect, run_guarded, without_image
from lvlm_guard_contrastive import Gated
from lvlm_guard_layers import SLA

from lvlm_guard import Bias, Branch, Guard, InputError, Mix, Plausible, Restrict, Stack, StackError
from lvlm_guard.host.plugins import is_neutral
from lvlm_guard.testing import tiny
from lvlm_guard.testing.recompute import next_logits
from lvlm_guard.testing.tiny import inputs_for

VDD = {"name": "vdd", "params": {"blank": "none", "alpha": 1.0, "beta": 0.1}}


class TestGated(BundledContract):
    strategy = Gated(strategies=({"name": "icd", "params": {"alpha": 1.0}},), margin=100.0)


def margin_of(logits):
    best = logits.topk(2).values
    return float(best[0] - best[1])


def gated_steps(model, inputs, margin):
    """The effect of every step, and whether its gate was open."""
    tokens, logits = run_guarded(model, inputs, Gated(strategies=(VDD,), margin=margin))
    for step, got in enumerate(logits):
        main, blind = (next_logits(model, prompt, tokens[:step]) for prompt in (inputs, without_image(inputs)))
        is_open = margin_of(main) < margin
        yield measure_effect(got, main, main + is_open * (main - blind), 0.1), is_open


def test_gated():
    model, _ = tiny("llava")
    for text in range(4, 24):  # until the gate is shut at one step and open at another
        inputs = inputs_for("llava", model, text=text)
        first = margin_of(next_logits(model, inputs, ()))
        for margin in (0.99 * first, 1.01 * first):
            steps = list(gated_steps(model, inputs, margin))
            if len({is_open for _, is_open in steps}) == 2:
                break
        else:
            continue
        break
    assert {is_open for _, is_open in steps} == {True, False}
    assert max(effect for effect, is_open in steps if is_open) > 0.1
    assert max(effect for effect, is_open in steps if not is_open) == 0.0


def test_a_wide_gate_is_the_strategies_themselves():
    model, inputs = tiny("llava")
    plain, bare, gated = (
        Guard(model, stack=stack).generate(
            **inputs, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        for stack in (
            [],
            Stack.of([VDD, "sla"]),
            [Gated(strategies=(VDD, {"name": "sla", "params": {}}), margin=100.0)],
        )
    )
    assert torch.equal(bare.sequences, gated.sequences)
    assert all(torch.allclose(*pair, atol=1e-4) for pair in zip(bare.logits, gated.logits, strict=True))
    assert float((plain.logits[0] - gated.logits[0]).abs().max()) > 0.1


@dataclass(frozen=True)
class _Now:
    main: torch.Tensor

    def logits(self):
        return self.main


SURE_AND_UNSURE = torch.tensor([[[9.0, 0.0, 0.0, 0.0]], [[1.0, 0.0, 0.9, 0.0]]])


@pytest.mark.parametrize("shape", [(), (2,), (2, 1)])
def test_weights_of_every_shape_are_gated_row_by_row(shape, monkeypatch):
    weight = 0.5 if shape == () else torch.full(shape, 0.5)
    for given in (weight, lambda _: torch.full((2, 1), 0.5)):
        (term,) = gate_terms([Mix("main", given)], monkeypatch)
        factor = term.weight(None) if callable(term.weight) else term.weight
        assert factor.tolist() == [[0.0], [0.5]]


@pytest.mark.parametrize("shape", [(4,), (2, 4), (2, 1, 4)])
def test_biases_and_restrictions_are_gated_row_by_row(shape, monkeypatch):
    keep = torch.tensor([False, True, True, True]).expand(shape)
    bias, restrict, cut = gate_terms([Bias(keep.float()), Restrict(keep), Plausible(0.1)], monkeypatch)
    assert bias.values.tolist() == [[[0.0] * 4], [[0.0, 1.0, 1.0, 1.0]]]
    assert restrict.keep.tolist() == [[[True] * 4], [[False, True, True, True]]]
    assert cut == Plausible(0.1)


def gate_terms(terms, monkeypatch):
    strategy = Gated(strategies=({"name": "sla", "params": {}},), margin=1.0)
    monkeypatch.setattr(SLA, "terms", lambda self, gen: terms)
    SLA.terms.lvlm_guard_impl = {}
    return list(strategy.terms(_Now(SURE_AND_UNSURE)))


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        (
            ({"name": "pai", "params": {}},),
            "put pai into the stack itself, since it acts by attention, before the margin",
        ),
        (({"name": "vsv", "params": {}},), "put vsv into .* acts by hidden"),
        (({"name": "transform", "params": {}},), "put transform into .* acts by edit_inputs"),
        (({"name": "vddd", "params": {}},), "No strategy is called 'vddd'"),
        (({"name": "vdd", "params": {"alpha": -1.0}},), "alpha"),
    ],
)
def test_what_cannot_be_gated_is_refused_where_the_stack_is_built(entries, reason):
    with pytest.raises(StackError, match=reason):
        Stack.of({"name": "gated", "params": {"strategies": entries}})


def test_a_stack_file_holds_a_gated_stack(tmp_path):
    path = tmp_path / "stack.toml"
    path.write_text(
        '[[stack]]\nname = "gated"\nparams = {margin = 1.5, strategies = [{name = "vdd", params = {alpha = 2.0}}]}\n',
        encoding="utf-8",
    )
    (gated,) = Stack.read(path)
    assert (gated.margin, gated.strategies) == (1.5, ({"name": "vdd", "params": {"alpha": 2.0}},))
    assert Stack.of(Stack.read(path).to_dict()).to_dict() == Stack.read(path).to_dict()
    assert not is_neutral(gated)
    assert is_neutral(dataclasses.replace(gated, margin=0.0))
    assert isinstance(hash(gated), int)


def test_no_strategy_is_refused():
    with pytest.raises(InputError, match="strategies"):
        Stack.of({"name": "gated", "params": {"strategies": []}})


def test_branches_of_several_strategies_are_shared():
    model, inputs = tiny("llava")
    guard = Guard(model, stack=[Gated(strategies=(VDD, {"name": "m3id", "params": {}}), margin=100.0)])
    guard.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert guard.report.branches == (Branch.without_image().key[0],) or len(guard.report.branches) == 1
