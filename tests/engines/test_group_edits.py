"""What a group plans inside the layers before its prompts have run, and what it does once their states are known."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import pytest
import torch
from served import draw_picture

from lvlm_guard import (
    AttentionEdit,
    Branch,
    Guard,
    HiddenEdit,
    Shift,
    StrategyRefused,
    hookimpl,
    loading,
)
from lvlm_guard.engines.vllm.groups import Membership
from lvlm_guard.engines.vllm.live_group import LiveGroup
from lvlm_guard.engines.vllm.prompt_probes import KnownStates, StandInStates, name_prompt
from lvlm_guard.engines.vllm.translation import describe_group, describe_model
from lvlm_guard.host.plugins import StrategyCalls
from lvlm_guard.host.stack import Stack
from lvlm_guard.request.requests import Request
from lvlm_guard.strategy.prompt import PromptStates

VECTOR = torch.ones(128)
INSIDE = Branch("inside", inside=True)


@pytest.fixture(scope="module")
def guard():
    model, processor = loading.load("testbed", "cpu")
    return Guard(model, processor)


@pytest.fixture(scope="module")
def request_of_guard(guard):
    content = [{"type": "image"}, {"type": "text", "text": "What is in the picture?"}]
    messages = [{"role": "user", "content": content}]
    inputs = guard.inputs(images=draw_picture(0), messages=messages)
    return Request(dict(inputs), {}, guard.model.config, guard.processor)


@dataclasses.dataclass(frozen=True)
class Editing:
    """Yields what it is given."""

    edits: tuple = ()
    branches_given: tuple = ()
    name = "editing"

    @hookimpl
    def hidden(self, gen) -> Iterable[HiddenEdit]:
        return [edit for edit in self.edits if isinstance(edit, HiddenEdit)]

    @hookimpl
    def attention(self, gen) -> Iterable[AttentionEdit]:
        return [edit for edit in self.edits if isinstance(edit, AttentionEdit)]

    @hookimpl
    def branches(self, gen) -> Iterable[Branch]:
        return self.branches_given


def describe(guard, request, strategies):
    model = describe_model(guard.model.config, guard.processor.tokenizer)
    return describe_group(request, StrategyCalls(strategies), model, reads_layers=True)


def open_group(guard, request, described, strategies, states):
    model = describe_model(guard.model.config, guard.processor.tokenizer)
    ids, image = request.inputs["input_ids"][0].tolist(), guard.model.config.image_token_id
    return LiveGroup(StrategyCalls(strategies), ids, image, model, states=states, outline=described.plan)


def test_prompts_that_a_strategy_asks_for_are_described_once_each(guard, request_of_guard):
    described = describe(guard, request_of_guard, Stack.of("vsv+contrarian").strategies)
    assert set(described.probes) == {name_prompt(None), name_prompt(Branch.without_image())}
    assert described.probes[name_prompt(None)] is described.main
    without = described.probes[name_prompt(Branch.without_image())]
    assert guard.model.config.image_token_id not in without.ids
    assert without.inputs == {}
    assert described.edited == {"main"}
    assert not describe(guard, request_of_guard, Stack.of("vcd").strategies).edited


def test_known_states_are_what_the_strategy_works_with(guard, request_of_guard):
    strategies = Stack.of("vsv").strategies
    described = describe(guard, request_of_guard, strategies)
    hidden = torch.randn(1, 8, 128)
    states = {name: PromptStates(hidden * (2 if name == "main" else 1), torch.zeros(1, 5)) for name in described.probes}
    live = open_group(guard, request_of_guard, described, strategies, states)
    unit = live.gen.rows["vsv 3"][0, 0]
    torch.testing.assert_close(unit, torch.nn.functional.normalize(hidden[0, 3], dim=-1))


def test_a_group_whose_states_are_missing_is_refused(guard, request_of_guard):
    strategies = Stack.of("vsv").strategies
    described = describe(guard, request_of_guard, strategies)
    with pytest.raises(StrategyRefused, match="did not ask for when the group was made"):
        open_group(guard, request_of_guard, described, strategies, {})
    with pytest.raises(StrategyRefused, match="did not ask for"):
        KnownStates({})(None)


def test_a_plan_that_depends_on_states_is_refused(guard, request_of_guard):
    first = (Editing((HiddenEdit("mlp", Shift(VECTOR)),)),)
    other = (Editing((HiddenEdit("mlp", Shift(VECTOR), (0, 2)),)),)
    described = describe(guard, request_of_guard, first)
    open_group(guard, request_of_guard, described, first, {})
    with pytest.raises(StrategyRefused, match="depends on states of prompts"):
        open_group(guard, request_of_guard, described, other, {})


def test_stand_ins_have_the_shapes_of_true_states(guard):
    model = describe_model(guard.model.config, guard.processor.tokenizer)
    states = StandInStates(model)
    first, second = states(None), states(Branch.without_image())
    assert first.hidden.shape == (1, 8, 128)
    assert first.logits.shape == (1, guard.model.config.text_config.vocab_size)
    assert not torch.equal(first.hidden, second.hidden)
    assert list(states.prompts) == [name_prompt(None), name_prompt(Branch.without_image())]


def test_edits_belong_to_the_member_that_they_name(guard, request_of_guard):
    edits = (
        HiddenEdit("mlp", Shift(VECTOR)),
        HiddenEdit("residual", Shift(VECTOR), branch="inside", when="decode"),
        AttentionEdit((0, 2), "scale", 2.0, branch="inside"),
    )
    strategies = (Editing(edits, (INSIDE,)),)
    described = describe(guard, request_of_guard, strategies)
    assert described.edited == {"main", "inside"}
    assert described.branches["inside"].ids == described.main.ids
    live = open_group(guard, request_of_guard, described, strategies, {})
    ids = described.main.ids
    places = [Membership("g", index, 2) for index in (0, 1)]
    main, inside = (live.find_prompt(index, ids) for index in (0, 1))
    cpu = torch.device("cpu")
    [planned] = live.plan_edits(places[0], main, slice(3, 8), 2, cpu)
    assert (planned.edit, planned.rows, planned.applies.tolist()) == (edits[0], slice(3, 8), [[True] * 5])
    assert live.plan_edits(places[1], inside, slice(3, 8), 2, cpu) == []
    assert [each.edit for each in live.plan_edits(places[1], inside, slice(0, 1), len(ids), cpu)] == [edits[1]]
    assert live.plan_attention(places[0], main, slice(0, 2), len(ids) - 2, cpu) == []
    [placed] = live.plan_attention(places[1], inside, slice(0, 2), len(ids) - 2, cpu)
    assert placed.queries.tolist() == [False, True]
    assert int(placed.keys.sum()) == ids.count(guard.model.config.image_token_id)


@pytest.mark.parametrize(
    ("edit", "need"),
    [
        (HiddenEdit("mlp", lambda hidden, view: hidden), "edits of hidden states by a function"),
        (HiddenEdit("mlp", Shift(VECTOR), tower="vision"), "edits of the vision tower"),
        (AttentionEdit((0, 1), lambda scores, view: scores), "edits of attention by a function"),
    ],
)
def test_edits_that_pieces_of_a_prompt_cannot_have_are_refused(guard, request_of_guard, edit, need):
    with pytest.raises(StrategyRefused, match=f"'editing' needs {need}"):
        describe(guard, request_of_guard, (Editing((edit,)),))


def test_outlines_tell_plans_apart_and_not_their_functions(guard, request_of_guard):
    outlines = {
        describe(guard, request_of_guard, (Editing((HiddenEdit("mlp", Shift(VECTOR, size)),)),)).plan
        for size in (1.0, 2.0)
    }
    assert len(outlines) == 1
