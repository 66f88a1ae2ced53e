"""Hidden states edited in a real vLLM, in groups beside others: every answer is that of `Guard`, token for token.

Needs vLLM in an environment of its own: `make test-vllm` makes one and runs these.
"""

from __future__ import annotations

from importlib.util import find_spec

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
        expect,
        find_runner_guard,
        find_scheduler,
        fit_stack,
        make_prompt,
        read_tokens,
        start_engine,
        stop_engine,
    )

    from lvlm_guard.engines.errors import EngineFailed
    from lvlm_guard.errors import StrategyRefused

NEW = 24
REQUESTS = 8


def find_stack(name):
    """Return a stack by its name in these tests; those of artefacts fitted on the bundled model."""
    parts = {"nullu": lambda: fit_stack("nullu"), "vti": lambda: fit_stack("vti", alpha_image=0.0)}
    return [
        each
        for part in name.split("+")
        for each in (parts[part]() if part in parts else [{"name": part, "params": {}}])
    ]


STACKS = (
    "vsv", "nullu", "vti", "pai", "vaf", "vsv+nullu", "vsv+vdd", "pai+vaf", "nullu+dola", "contrarian", "vdd", "plain",
)  # fmt: skip
UNDER_STRESS = {
    "small budget": {"max_num_batched_tokens": 96, "max_num_seqs": 16, "enable_prefix_caching": False},
    "few blocks, prefix cache": {"max_num_batched_tokens": 128, "num_gpu_blocks_override": 20},
}


@pytest.mark.parametrize("name", UNDER_STRESS)
def test_edits_stay_with_their_requests_under_stress(name):
    llm = start_engine(**UNDER_STRESS[name])
    try:
        stacks = [None if stack == "plain" else find_stack(stack) for stack in STACKS]
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
        assert len(scheduler.groups) == len(scheduler.requests) == len(find_runner_guard(llm)._states) == 0
    finally:
        stop_engine(llm)


@pytest.fixture(scope="module")
def roomy():
    llm = start_engine(**ROOMY)
    yield llm
    assert llm.guard_counts()["alone"] == 0
    guard = find_runner_guard(llm)
    assert guard._states == {}
    stop_engine(llm)


@pytest.mark.parametrize("name", STACKS[:-2])
def test_edited_hidden_states_answer_as_the_guard_does(roomy, name):
    stack, plain = find_stack(name), expect(None, REQUESTS, max_new_tokens=NEW)
    expected = expect(stack, REQUESTS, max_new_tokens=NEW)
    prompts = [make_prompt(index) for index in range(REQUESTS)]
    parameters = SamplingParams(temperature=0, max_tokens=NEW)
    assert read_tokens(roomy.generate(prompts, parameters, stack=stack, use_tqdm=False)) == expected
    assert expected != plain
    assert len(find_scheduler(roomy).requests) == 0


def test_edited_requests_share_no_cache_with_plain_ones_of_the_same_prompt(roomy):
    stack, prompt = find_stack("nullu"), make_prompt(0)
    parameters = SamplingParams(temperature=0, max_tokens=NEW)
    answers = [
        read_tokens(roomy.generate(prompt, parameters, stack=chosen, use_tqdm=False))[0]
        for chosen in (stack, None, stack, None, "vsv", None)
    ]
    guarded, plain = (expect(chosen, REQUESTS, max_new_tokens=NEW)[0] for chosen in (stack, None))
    steered = expect(find_stack("vsv"), REQUESTS, max_new_tokens=NEW)[0]
    assert answers == [guarded, plain, guarded, plain, steered, plain]


def test_an_aborted_request_takes_its_probes_along(roomy):
    with roomy._using("vsv"):
        roomy.enqueue(make_prompt(0), SamplingParams(temperature=0, max_tokens=NEW), use_tqdm=False)
    scheduler = find_scheduler(roomy)
    assert len(scheduler.requests) == 3
    name = next(request for request in scheduler.requests if "probe" not in request)
    roomy.llm_engine.abort_request([name], internal=True)
    assert len(scheduler.requests) == len(scheduler.groups) == 0


def test_an_edit_that_fails_ends_its_group_alone(roomy, monkeypatch):
    guard = find_runner_guard(roomy)
    apply, failed = guard._layers._hidden._apply, []

    def fail_first_group(planned, states, layer):
        failed.append(planned.group)
        if planned.group == failed[0] and layer == 1:
            raise ValueError("no turn today")
        return apply(planned, states, layer)

    monkeypatch.setattr(guard._layers._hidden, "_apply", fail_first_group)
    prompts = [make_prompt(index) for index in range(3)]
    with pytest.raises(EngineFailed, match=r"1 of 3 requests .*no turn today") as caught:
        roomy.generate(prompts, SamplingParams(temperature=0, max_tokens=NEW), stack="vsv", use_tqdm=False)
    outputs, expected = caught.value.outputs, expect(find_stack("vsv"), REQUESTS, max_new_tokens=NEW)
    kept = [index for index, output in enumerate(outputs) if output.outputs[0].finish_reason != "error"]
    assert len(kept) == 2
    assert [list(outputs[index].outputs[0].token_ids) for index in kept] == [expected[index] for index in kept]


def test_a_compiled_model_and_the_vision_tower_are_refused_by_name(roomy):
    greedy = SamplingParams(temperature=0, max_tokens=4)
    with pytest.raises(StrategyRefused, match=r"'vti' needs edits of the vision tower"):
        roomy.generate(make_prompt(0), greedy, stack=fit_stack("vti"), use_tqdm=False)
    limits = roomy._builder._limits
    object.__setattr__(limits, "reads_layers", False)
    try:
        for stack, need in (
            ("vsv", "prompts that are run"),
            ("nullu", "edits inside the layers"),
            ("pai", "edits inside the layers"),
            ("dola", "readouts"),
        ):
            with pytest.raises(StrategyRefused, match=f"'{stack}' needs {need}.*enforce_eager=True"):
                roomy.generate(make_prompt(0), greedy, stack=find_stack(stack), use_tqdm=False)
    finally:
        object.__setattr__(limits, "reads_layers", True)
