"""Groups in the second model runner of vLLM, on a CPU and in fp32: every answer is that of `Guard`, token for token.

Its kernels are Triton's, which run in Triton's interpreter here, so nothing is said of a GPU. The runner is chosen once for a process, so
these tests run alone: `make test-vllm-second` makes what they need and runs them.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from types import SimpleNamespace

import pytest

RUNNER = "VLLM_USE_V2_MODEL_RUNNER"
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("default"),
    pytest.mark.timeout(1800),
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed here: make test-vllm-second"),
    pytest.mark.skipif(os.environ.get(RUNNER) != "1", reason=f"{RUNNER} is not 1 here: make test-vllm-second"),
    pytest.mark.skipif(find_spec("triton") is None, reason="the runner needs Triton: make test-vllm-second"),
]
if find_spec("vllm") is not None:
    from vllm import SamplingParams
    from vllm_engine import (
        ROOMY,
        answer_mixed,
        expect,
        find_runner,
        find_runner_guard,
        find_scheduler,
        find_words,
        find_worker,
        fit_stack,
        follow_answer,
        make_prompt,
        read_tokens,
        start_engine,
        stop_engine,
    )

    from lvlm_guard.engines.errors import EngineFailed
    from lvlm_guard.engines.vllm.configuration import refuse_configuration
    from lvlm_guard.errors import ModelRefused, ModeRefused

NEW = 24
REQUESTS = 8
STACKS = (
    "vdd", "vcd", "vcd+vdd", "icd", "m3id", "ritual", "dola", "deco+vcd", "vsv", "nullu", "pai", "contrarian", "temperature",
)  # fmt: skip
MIXED = ("vdd", "vcd", "vcd+vdd", "m3id", "vsv", "nullu", "pai", "plain")
UNDER_STRESS = {
    "small budget": {"max_num_batched_tokens": 96, "max_num_seqs": 16, "enable_prefix_caching": False},
    "few blocks, prefix cache": {"max_num_batched_tokens": 128, "num_gpu_blocks_override": 20},
}


def find_stack(name):
    """Return a stack by its name in these tests; `nullu` has an artefact fitted on the bundled model."""
    if name == "plain":
        return None
    return fit_stack("nullu") if name == "nullu" else name


@pytest.fixture(scope="module")
def roomy():
    llm = start_engine(**ROOMY)
    yield llm
    assert llm.guard_counts()["alone"] == 0
    stop_engine(llm)


def test_the_engine_runs_the_second_runner(roomy):
    assert roomy.llm_engine.vllm_config.use_v2_model_runner
    assert hasattr(find_runner(roomy), "req_states")  # the first one has input_batch in its place
    assert not hasattr(find_runner(roomy), "input_batch")


@pytest.mark.parametrize("name", STACKS)
def test_every_answer_is_the_guards(roomy, name):
    stack = find_stack(name)
    expected, plain = expect(stack, REQUESTS, max_new_tokens=NEW), expect(None, REQUESTS, max_new_tokens=NEW)
    prompts = [make_prompt(index) for index in range(REQUESTS)]
    parameters = SamplingParams(temperature=0, max_tokens=NEW)
    before = roomy.guard_counts()
    assert read_tokens(roomy.generate(prompts, parameters, stack=stack, use_tqdm=False)) == expected
    after = roomy.guard_counts()
    assert after["groups"] == before["groups"] + REQUESTS
    assert after["steps"] >= before["steps"] + sum(map(len, expected))
    assert (expected == plain) == (name == "temperature")
    assert len(find_scheduler(roomy).requests) == len(find_runner_guard(roomy)._states) == 0


@pytest.mark.parametrize("name", UNDER_STRESS)
def test_groups_under_stress_answer_as_the_guard_does(name):
    llm = start_engine(**UNDER_STRESS[name])
    try:
        stacks = [find_stack(stack) for stack in MIXED]
        count = 2 * len(stacks)
        parameters = SamplingParams(temperature=0, max_tokens=NEW, min_tokens=NEW)
        outputs = answer_mixed(llm, [stacks[index % len(stacks)] for index in range(count)], parameters)
        expected = [expect(stack, count, max_new_tokens=NEW, min_new_tokens=NEW) for stack in stacks]
        wanted = [expected[index % len(stacks)][index] for index in range(count)]
        assert [index for index in range(count) if outputs[index] != wanted[index]] == []
        counts, scheduler = llm.guard_counts(), find_scheduler(llm)
        print(name, counts, "groups preempted:", scheduler.group_preemptions)
        assert counts["alone"] == counts["failed"] == 0
        assert (scheduler.group_preemptions > 0) == name.startswith("few blocks")
        assert len(scheduler.groups) == len(scheduler.requests) == 0
    finally:
        stop_engine(llm)


PARAMETERS = {
    "repetition penalty": ({"repetition_penalty": 1.4}, {"repetition_penalty": 1.4}),
    "min_tokens": ({"min_tokens": 20}, {"min_new_tokens": 20}),
    "bad_words": ({"bad_words": ["dog", "a"]}, "bad_words"),
}


@pytest.mark.parametrize("stack", ["vdd", "vcd+vdd"])
@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_work_on_what_the_stack_makes_of_the_logits(roomy, name, stack):
    ours, theirs = PARAMETERS[name]
    theirs = {"bad_words_ids": find_words(ours["bad_words"])} if theirs == "bad_words" else theirs
    prompts = [make_prompt(index) for index in range(REQUESTS)]
    parameters = SamplingParams(temperature=0, max_tokens=NEW, **ours)
    outputs = roomy.generate(prompts, parameters, stack=stack, use_tqdm=False)
    assert read_tokens(outputs) == expect(stack, REQUESTS, max_new_tokens=NEW, **theirs)


@pytest.mark.parametrize("stack", ["vdd", "vcd+vdd"])
def test_sampled_tokens_have_the_combined_probabilities(roomy, stack):
    parameters = SamplingParams(temperature=0.8, max_tokens=16, logprobs=1)  # top_p's kernel fails in the interpreter
    outputs = roomy.generate([make_prompt(index) for index in range(4)], parameters, stack=stack, use_tqdm=False)
    assert all(follow_answer(index, stack, output, top_p=1.0) for index, output in enumerate(outputs))


def test_a_group_that_fails_ends_with_an_error_and_leaves_its_neighbours_alone(roomy, monkeypatch):
    sampler, opened = find_runner_guard(roomy).sampler, []
    open_group = sampler.open_group

    def fail_once(place, name):
        opened.append(name)
        if len(opened) == 2:
            raise ValueError("no terms today")
        return open_group(place, name)

    monkeypatch.setattr(sampler, "open_group", fail_once)
    parameters = SamplingParams(temperature=0, max_tokens=NEW)
    with pytest.raises(EngineFailed, match=r"1 of 4 requests .*no terms today") as caught:
        roomy.generate([make_prompt(index) for index in range(4)], parameters, use_tqdm=False)
    outputs, expected = caught.value.outputs, expect("vdd", REQUESTS, max_new_tokens=NEW)
    kept = [index for index, output in enumerate(outputs) if output.outputs[0].finish_reason != "error"]
    assert len(kept) == 3
    assert [list(outputs[index].outputs[0].token_ids) for index in kept] == [expected[index] for index in kept]
    assert len(find_scheduler(roomy).requests) == 0


def test_requests_that_ended_are_forgotten_and_plain_ones_stay_plain(roomy):
    prompts = [make_prompt(index) for index in range(REQUESTS)]
    parameters = SamplingParams(temperature=0, max_tokens=NEW)
    roomy.generate(prompts, parameters, use_tqdm=False)
    plain = roomy.generate(prompts, parameters, stack=None, use_tqdm=False)
    assert read_tokens(plain) == expect(None, REQUESTS, max_new_tokens=NEW)
    assert find_runner_guard(roomy)._runner._noted == {}
    assert find_runner_guard(roomy)._mains == {}


def test_a_sampler_of_another_kind_is_refused_by_name(roomy):
    from lvlm_guard.engines.vllm.second_runner import SecondRunner  # noqa: PLC0415 - needs Triton

    runner = find_runner(roomy)
    with pytest.raises(ModelRefused, match=r"is sampled by CombiningSampler in vLLM.*Guard\(model, processor\)"):
        SecondRunner(runner)


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"watermark_config": object()}, "watermarking is refused.*leave watermark_config out"),
        ({"parallel_config": {"prefill_context_parallel_size": 2}}, "context parallelism is refused"),
    ],
)
def test_settings_that_groups_were_not_run_with_are_refused(roomy, changed, name):
    config = roomy.llm_engine.vllm_config
    refuse_configuration(config, is_asynchronous=False)
    with pytest.raises(ModeRefused, match=name):
        refuse_configuration(change(config, changed), is_asynchronous=False)


def change(config, changes):
    """Return what has the attributes of a configuration, some of them changed."""
    changed = {
        name: change(getattr(config, name), value) if isinstance(value, dict) else value
        for name, value in changes.items()
    }
    return SimpleNamespace(**{**vars(config), **changed})


def test_the_runner_is_as_it_was_once_the_engine_ended():
    llm = start_engine(**ROOMY)
    worker = find_worker(llm)
    runner, wrapped = worker.model_runner, worker.model_runner.sampler
    assert "prepare_inputs" in vars(runner)
    worker._undo_guard()
    assert "prepare_inputs" not in vars(runner)
    assert runner.sampler is wrapped._sampler
    del worker._undo_guard
    stop_engine(llm)
