"""Groups of prompts give the answers of `Guard`: translated, combined and decoded by an engine of few lines."""

from __future__ import annotations

import pytest
import torch
from pretended_engine import PretendedEngine
from served import draw_picture

from lvlm_guard import Guard, Stack, StrategyRefused, loading
from lvlm_guard.engines.vllm.translation import describe_group, describe_model
from lvlm_guard.errors import InputError
from lvlm_guard.host.plugins import StrategyCalls
from lvlm_guard.request.requests import Request

NEW = 12
END = 3
STACKS = ("vdd", "vcd", "icd", "m3id", "ritual", "vcd+vdd", "temperature", "mask_only")


@pytest.fixture(scope="module")
def guard():
    model, processor = loading.load("testbed", "cpu")
    return Guard(model, processor, "vdd")


@pytest.fixture(scope="module")
def requests(guard):
    questions = ("What is in the picture?", "Is there a dog in the picture?")
    return [
        dict(guard.inputs(images=draw_picture(seed), messages=ask(question, draw_picture(seed))))
        for seed, question in enumerate(questions)
    ]


def ask(question, picture):
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]


def answer(guard, inputs, stack):
    ids = guard.generate(**inputs, stack=stack, max_new_tokens=NEW, do_sample=False)
    return ids[0, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("stack", STACKS)
def test_groups_answer_as_the_guard_does(guard, requests, stack):
    engine = PretendedEngine(guard, END)
    names = [engine.add(inputs, stack) for inputs in requests]
    answers = engine.run(NEW)
    expected = [answer(guard, inputs, stack) for inputs in requests]
    assert [answers[name] for name in names] == expected
    assert engine.sampler.counts.alone == engine.sampler.counts.failed == 0


def test_the_stacks_change_answers(guard, requests):
    plain = [answer(guard, inputs, "plain") for inputs in requests]
    changed = {stack for stack in STACKS if [answer(guard, inputs, stack) for inputs in requests] != plain}
    print(sorted(changed))
    assert {"vcd", "vdd"} & changed


def test_groups_of_different_stacks_share_a_step(guard, requests):
    engine = PretendedEngine(guard, END)
    names = {stack: engine.add(requests[0], stack) for stack in ("vcd", "vdd", "m3id")}
    answers = engine.run(NEW)
    assert {stack: answers[name] for stack, name in names.items()} == {
        stack: answer(guard, requests[0], stack) for stack in names
    }


def test_a_member_that_is_sampled_alone_ends_its_group_with_an_error(guard, requests):
    engine = PretendedEngine(guard, END)
    alone, other = (engine.add(inputs, "vdd") for inputs in requests)
    answers = engine.run(1, skipping=5)  # rows come in reverse order: main of the first group
    assert engine.sampler.failures.keys() == {alone}
    assert "2 were sampled" in engine.sampler.failures[alone]
    assert engine.sampler.counts.alone == 1
    assert answers[alone] == []
    assert answers[other] == answer(guard, requests[1], "vdd")[:1]


def test_a_step_without_groups_leaves_its_tokens_alone(guard, requests):
    engine = PretendedEngine(guard, END)
    engine.add(requests[0], "vdd")
    engine.run(2)
    tokens = torch.tensor([[5], [6], [7]])
    engine.sampler.share_tokens(tokens)
    assert tokens.tolist() == [[5], [6], [7]]
    assert engine.sampler.counts.steps == 2


def test_logits_that_are_not_finite_end_their_group_alone(guard, requests):
    engine = PretendedEngine(guard, END)
    broken, sound = (engine.add(inputs, "vdd") for inputs in requests)
    run = engine._run
    engine._run = lambda name: run(name) * torch.nan if name == broken else run(name)
    answers = engine.run(1)
    assert "NaN" in engine.sampler.failures[broken]
    assert answers[sound] == answer(guard, requests[1], "vdd")[:1]


REFUSED = {
    "sid": "attention",
    "avisc": "attention",
    "pai": "edits inside the layers",
    "vsv": "prompts that are run for their hidden states",
    "dola": "readouts of inner layers",
    "deco": "readouts of inner layers",
    "opera": "a decoding loop of its own",
}


@pytest.mark.parametrize(("stack", "need"), REFUSED.items(), ids=REFUSED)
def test_what_a_group_lacks_is_named_with_the_strategy(guard, requests, stack, need):
    request = Request(dict(requests[0]), {}, guard.model.config, guard.processor)
    model = describe_model(guard.model.config, guard.processor.tokenizer)
    with pytest.raises(StrategyRefused, match=f"'{stack}' needs .*{need}"):
        describe_group(request, StrategyCalls(Stack.of(stack).strategies), model)


def test_an_image_that_is_missing_is_refused_as_the_guard_refuses_it(guard):
    request = Request(
        dict(guard.inputs(text="user: is there a dog ? assistant:")), {}, guard.model.config, guard.processor
    )
    model = describe_model(guard.model.config, guard.processor.tokenizer)
    with pytest.raises((StrategyRefused, InputError), match="image"):
        describe_group(request, StrategyCalls(Stack.of("vcd").strategies), model)
