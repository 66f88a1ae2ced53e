"""Groups in a real vLLM, on a CPU and in fp32: every answer is that of `Guard` on transformers, token for token.

Needs vLLM in an environment of its own: `make test-vllm` makes one and runs these.
"""

from __future__ import annotations

import base64
from importlib.util import find_spec
from io import BytesIO

import pytest

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("default"),
    pytest.mark.timeout(1800),
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed here: make test-vllm"),
]
if find_spec("vllm") is not None:
    from vllm import SamplingParams
    from vllm_engine import (
        ROOMY,
        answer_mixed,
        cut_at_stop,
        expect,
        find_sampler,
        find_scheduler,
        find_words,
        follow_answer,
        load_guard,
        make_prompt,
        read_tokens,
        start_engine,
        stop_engine,
        write_text,
    )  # fmt: skip

    from lvlm_guard.engines.errors import EngineFailed
    from lvlm_guard.errors import InputError, ModeRefused, StrategyRefused

VDD = {"name": "vdd", "params": {"blank": "none"}}
STACKS = {
    "vdd": "vdd",
    "vcd": "vcd",
    "vcd+vdd": "vcd+vdd",
    "icd": "icd",
    "m3id": "m3id",
    "ritual": "ritual",
    "plain": None,
}
SMALL = {"one branch": [VDD], "m3id": "m3id", "plain": None}
UNDER_STRESS = {
    "small budget": (STACKS, {"max_num_batched_tokens": 96, "max_num_seqs": 16, "enable_prefix_caching": False}),
    "few blocks": (
        STACKS,
        {"max_num_batched_tokens": 128, "num_gpu_blocks_override": 20, "enable_prefix_caching": False},
    ),
    "few blocks, prefix cache": (STACKS, {"max_num_batched_tokens": 128, "num_gpu_blocks_override": 20}),
    "blocks for one group": (SMALL, {"max_num_batched_tokens": 64, "num_gpu_blocks_override": 10}),
}
REQUESTS = 24
LONG = 48
PREEMPTS = ("few blocks", "few blocks, prefix cache", "blocks for one group")


@pytest.fixture(scope="module")
def roomy():
    llm = start_engine(**ROOMY)
    yield llm
    assert llm.guard_counts()["alone"] == 0
    stop_engine(llm)


@pytest.mark.parametrize("name", UNDER_STRESS)
def test_groups_of_all_stacks_under_stress_answer_as_the_guard_does(name):
    stacks, options = UNDER_STRESS[name]
    llm = start_engine(**options)
    try:
        chosen = [list(stacks.values())[index % len(stacks)] for index in range(REQUESTS)]
        parameters = SamplingParams(temperature=0, max_tokens=LONG, min_tokens=LONG)
        outputs = answer_mixed(llm, chosen, parameters)
        expected = [expect(stack, REQUESTS, max_new_tokens=LONG, min_new_tokens=LONG) for stack in stacks.values()]
        wanted = [expected[index % len(stacks)][index] for index in range(REQUESTS)]
        assert [index for index in range(REQUESTS) if outputs[index] != wanted[index]] == []
        assert {len(tokens) for tokens in wanted} == {LONG}
        scheduler, counts = find_scheduler(llm), llm.guard_counts()
        print(name, counts, "groups preempted:", scheduler.group_preemptions)
        assert counts["alone"] == counts["failed"] == 0
        assert (scheduler.group_preemptions > 0) == (name in PREEMPTS)
        assert len(scheduler.groups) == len(scheduler.requests) == 0
    finally:
        stop_engine(llm)


def test_plain_requests_beside_and_after_groups_stay_plain(roomy):
    plain = expect(None, 8, max_new_tokens=40, min_new_tokens=40)
    short, long = (SamplingParams(temperature=0, max_tokens=length, min_tokens=length) for length in (8, 40))
    for index in range(8):
        with roomy._using(None if index % 2 else "vcd"):
            roomy.enqueue(make_prompt(index), long if index % 2 else short, use_tqdm=False)
    outputs = read_tokens(roomy.wait_for_completion(use_tqdm=False))
    assert outputs[1::2] == plain[1::2]
    assert outputs[::2] == [tokens[:8] for tokens in expect("vcd", 8, max_new_tokens=40, min_new_tokens=40)[::2]]
    prompts = [make_prompt(index) for index in range(8)]
    assert read_tokens(roomy.generate(prompts, long, stack=None, use_tqdm=False)) == plain


PARAMETERS = {
    "greedy": ({}, {}),
    "repetition penalty": ({"repetition_penalty": 1.4}, {"repetition_penalty": 1.4}),
    "min_tokens": ({"min_tokens": 20}, {"min_new_tokens": 20}),
    "bad_words": ({"bad_words": ["dog", "a"]}, "bad_words"),
}


@pytest.mark.parametrize("stack", ["vdd", "vcd", "icd", "vcd+vdd"])
@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_work_on_what_the_stack_makes_of_the_logits(roomy, name, stack):
    ours, theirs = PARAMETERS[name]
    theirs = {"bad_words_ids": find_words(ours["bad_words"])} if theirs == "bad_words" else theirs
    prompts = [make_prompt(index) for index in range(8)]
    outputs = roomy.generate(prompts, SamplingParams(temperature=0, max_tokens=24, **ours), stack=stack, use_tqdm=False)
    assert read_tokens(outputs) == expect(stack, 8, max_new_tokens=24, **theirs)


@pytest.mark.parametrize("stack", ["vdd", "vcd", "icd", "vcd+vdd"])
def test_stop_strings_end_the_answer_that_the_guard_gives(roomy, stack):
    expected = expect(stack, 8, max_new_tokens=24)
    decode = load_guard().processor.tokenizer.decode
    stops = [decode(expected[0]).split()[2], decode(expected[1]).split()[0]]
    parameters = SamplingParams(temperature=0, max_tokens=24, stop=stops)
    outputs = roomy.generate([make_prompt(index) for index in range(8)], parameters, stack=stack, use_tqdm=False)
    wanted = [cut_at_stop(tokens, stops, decode) for tokens in expected]
    assert read_tokens(outputs) == wanted
    assert wanted != expected
    assert {output.outputs[0].stop_reason for output in outputs} & set(stops)
    assert len(find_scheduler(roomy).requests) == 0


def test_the_effect_of_stacks_and_parameters_is_there(roomy):
    plain = expect(None, 8, max_new_tokens=24)
    for stack in ("vdd", "vcd", "vcd+vdd"):
        guarded = expect(stack, 8, max_new_tokens=24)
        assert guarded != plain
        assert expect(stack, 8, max_new_tokens=24, repetition_penalty=1.4) != guarded


@pytest.mark.parametrize("stack", ["dola", "deco", "sla", "deco+vcd"])
def test_inner_layers_are_read_as_the_guard_reads_them(roomy, stack):
    expected, plain = expect(stack, 8, max_new_tokens=24), expect(None, 8, max_new_tokens=24)
    parameters = SamplingParams(temperature=0, max_tokens=24)
    outputs = roomy.generate([make_prompt(index) for index in range(8)], parameters, stack=stack, use_tqdm=False)
    assert read_tokens(outputs) == expected
    assert expected != plain


@pytest.mark.parametrize("stack", ["vdd", "vcd+vdd"])
def test_sampled_tokens_have_the_combined_probabilities(roomy, stack):
    parameters = SamplingParams(temperature=0.8, top_p=0.9, max_tokens=16, logprobs=1)
    outputs = roomy.generate([make_prompt(index) for index in range(4)], parameters, stack=stack, use_tqdm=False)
    assert all(follow_answer(index, stack, output) for index, output in enumerate(outputs))


def test_conversations_are_answered_as_the_guard_answers_them(roomy):
    guard, prompt = load_guard(), make_prompt(1)
    data = BytesIO()
    prompt["multi_modal_data"]["image"].save(data, "PNG")
    url = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
    question = {"type": "text", "text": "Is there a dog in the picture?"}
    message = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}, question]}
    parameters = SamplingParams(temperature=0, max_tokens=16)
    bos = {"add_special_tokens": True}
    outputs = roomy.chat([message], parameters, stack="ritual", use_tqdm=False, tokenization_kwargs=bos)
    ours = {"role": "user", "content": [{"type": "image", "image": prompt["multi_modal_data"]["image"]}, question]}
    assert outputs[0].outputs[0].text.strip() == guard.chat([ours], stack="ritual", max_new_tokens=16, do_sample=False)


def test_an_aborted_request_takes_its_branches_along(roomy):
    scheduler = find_scheduler(roomy)
    for index in range(4):
        roomy.enqueue(make_prompt(index), SamplingParams(temperature=0, max_tokens=40, min_tokens=40), use_tqdm=False)
    for _ in range(6):
        roomy.llm_engine.step()
    names = [request for request in scheduler.requests if "branch" not in request]
    assert len(names) == 4
    roomy.llm_engine.abort_request(names[:2], internal=True)
    assert len(scheduler.groups) == 2
    assert len(scheduler.requests) == 6
    outputs = roomy.wait_for_completion(use_tqdm=False)
    assert read_tokens(outputs) == expect("vdd", 8, max_new_tokens=40, min_new_tokens=40)[2:4]
    assert len(scheduler.requests) == 0


def test_a_group_that_fails_ends_with_an_error_and_leaves_its_neighbours_alone(roomy, monkeypatch):
    sampler, opened = find_sampler(roomy), []
    open_group = sampler.open_group

    def fail_once(place, name):
        opened.append(name)
        if len(opened) == 2:
            raise ValueError("no terms today")
        return open_group(place, name)

    monkeypatch.setattr(sampler, "open_group", fail_once)
    before = sampler.counts.failed
    with pytest.raises(EngineFailed, match=r"1 of 4 requests .*no terms today") as caught:
        roomy.generate([make_prompt(i) for i in range(4)], SamplingParams(temperature=0, max_tokens=24), use_tqdm=False)
    outputs, expected = caught.value.outputs, expect("vdd", 8, max_new_tokens=24)
    failed = [index for index, output in enumerate(outputs) if output.outputs[0].finish_reason == "error"]
    assert len(failed) == 1
    assert list(outputs[failed[0]].outputs[0].token_ids) == []
    kept = [index for index in range(4) if index not in failed]
    assert [list(outputs[index].outputs[0].token_ids) for index in kept] == [expected[index] for index in kept]
    assert sampler.counts.failed == before + 1
    assert len(find_scheduler(roomy).requests) == 0


def test_a_group_whose_members_do_not_come_ends_with_an_error(roomy, monkeypatch):
    monkeypatch.setattr(find_scheduler(roomy), "wait_seconds", 0.0)
    monkeypatch.setattr(
        roomy.llm_engine.engine_core, "add_request", drop_branches(roomy.llm_engine.engine_core.add_request)
    )
    with pytest.raises(EngineFailed, match="did not come"):
        roomy.generate(make_prompt(0), SamplingParams(temperature=0, max_tokens=8), use_tqdm=False)
    assert len(find_scheduler(roomy).requests) == 0


def drop_branches(add_request):
    return lambda request: None if "branch" in request.request_id else add_request(request)


def test_what_would_be_wrong_is_refused_by_name_and_nothing_is_queued(roomy):
    greedy = {"temperature": 0, "max_tokens": 8}
    cases = [
        (ModeRefused, "seed", {**greedy, "seed": 1}, "vdd"),
        (ModeRefused, "n above 1", {"temperature": 1.0, "max_tokens": 8, "n": 2}, "vdd"),
        (InputError, "more than the 200", {**greedy, "max_tokens": 190}, "vdd"),
        (StrategyRefused, "'sid' needs", greedy, "sid"),
        (StrategyRefused, "'avisc' needs captures of attention", greedy, "avisc"),
        (StrategyRefused, "'memvr' needs edits of hidden states by a function", greedy, "memvr"),
    ]
    for error, message, settings, stack in cases:
        with pytest.raises(error, match=message):
            roomy.generate(make_prompt(0), SamplingParams(**settings), stack=stack, use_tqdm=False)
    with pytest.raises(StrategyRefused, match="image"):
        roomy.generate({"prompt": "user: hello assistant:"}, SamplingParams(**greedy), stack="vcd", use_tqdm=False)
    assert len(find_scheduler(roomy).requests) == 0
    assert roomy.llm_engine.get_num_unfinished_requests() == 0


def test_text_alone_is_answered_under_a_stack_that_needs_no_image(roomy):
    text = write_text("hello").replace("<image>", "")
    outputs = roomy.generate(
        {"prompt": text}, SamplingParams(temperature=0, max_tokens=8), stack="temperature", use_tqdm=False
    )
    guard = load_guard()
    inputs = guard.inputs(text=text)
    ids = guard.generate(**inputs, stack="temperature", max_new_tokens=8, do_sample=False)
    assert read_tokens(outputs) == [ids[0, inputs["input_ids"].shape[1] :].tolist()]


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"scheduler_cls": "vllm.v1.core.sched.scheduler.Scheduler"}, "scheduler_cls"),
        ({"mm_processor_cache_gb": 1}, "mm_processor_cache_gb"),
        ({"mm_device_do_normalize": True}, "mm_device_do_normalize"),
        ({"async_scheduling": True}, "Asynchronous scheduling"),
        ({"scheduling_policy": "priority"}, "priority scheduling"),
        ({"enable_chunked_prefill": False}, "prefill without chunks"),
    ],
)
def test_engines_that_groups_cannot_run_in_are_refused(options, name):
    with pytest.raises((InputError, ModeRefused), match=name):
        start_engine(**ROOMY, **options)
