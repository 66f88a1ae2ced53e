"""Many prompts under many stacks and sampling parameters at once, in engines under stress: every answer is that of `Guard`.

Needs vLLM in an environment of its own. `make test-vllm-many` runs 200 prompts; `VLLM_PROMPTS` is how many, 24 where it is not set.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from importlib.util import find_spec

import pytest

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),
    pytest.mark.timeout(7200),
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed here: make test-vllm"),
]
if find_spec("vllm") is not None:
    from vllm import SamplingParams
    from vllm_engine import (
        cut_at_stop,
        expect_at,
        find_runner_guard,
        find_scheduler,
        find_words,
        follow_answer,
        load_guard,
        make_prompt,
        start_engine,
        stop_engine,
    )

COUNT = int(os.environ.get("VLLM_PROMPTS", "24"))
NEW = 24
STACKS = ("vdd", "vcd", "vcd+vdd", "m3id", "vsv", "pai")
ENGINES = {
    "small budget": {"max_num_batched_tokens": 96, "max_num_seqs": 16, "enable_prefix_caching": False},
    "few blocks": {"max_num_batched_tokens": 128, "num_gpu_blocks_override": 20, "enable_prefix_caching": False},
    "few blocks, prefix cache": {"max_num_batched_tokens": 128, "num_gpu_blocks_override": 20},
    "blocks for two groups": {"max_num_batched_tokens": 64, "num_gpu_blocks_override": 16},
}
STOPS = [" and", "."]


@dataclass(frozen=True)
class Kind:
    """Parameters of a request in vLLM, and those of `Guard` that give the same answers."""

    ours: dict = field(default_factory=dict)
    theirs: dict = field(default_factory=dict)


def list_kinds():
    words = ["dog", "a"]
    return {
        "greedy": Kind(),
        "penalty": Kind({"repetition_penalty": 1.4}, {"repetition_penalty": 1.4}),
        "bad words": Kind({"bad_words": words}, {"bad_words_ids": find_words(words)}),
        "min_tokens": Kind({"min_tokens": NEW}, {"min_new_tokens": NEW}),
        "stops": Kind({"stop": STOPS}),
        "sampling": Kind({"temperature": 0.8, "top_p": 0.9, "logprobs": 1}),
        "aborted": Kind({"min_tokens": NEW}),
    }


def assign(count):
    """Return the stack and the kind of each request: every pair in turn."""
    kinds = list(list_kinds())
    return [(STACKS[index % len(STACKS)], kinds[(index // len(STACKS)) % len(kinds)]) for index in range(count)]


def queue(llm, requests):
    """Queue all requests; return their inner names by index."""
    kinds, names = list_kinds(), {}
    for index, (stack, kind) in enumerate(requests):
        parameters = SamplingParams(**{"temperature": 0, "max_tokens": NEW, **kinds[kind].ours})
        with llm._using(stack):
            names[index] = llm.enqueue(make_prompt(index), parameters, use_tqdm=False)[0]
    return names


def run(llm, requests):
    """Return the outputs of all requests but those that are aborted, half of them before they ran and half after two tokens."""
    names, scheduler, outputs = queue(llm, requests), find_scheduler(llm), []
    aborted = [names[index] for index, (_, kind) in enumerate(requests) if kind == "aborted"]
    llm.llm_engine.abort_request(aborted[::2], internal=True)
    waiting = set(aborted[1::2])
    while llm.llm_engine.has_unfinished_requests():
        outputs += llm.llm_engine.step()
        begun = [name for name in waiting if scheduler.requests[name].num_output_tokens >= 2]
        waiting -= set(begun)
        llm.llm_engine.abort_request(begun, internal=True)
    assert waiting == set()
    return {output.request_id: output for output in outputs if output.finished}


def find_wrong(requests, outputs):
    """Return the requests whose tokens are not those of `Guard`."""
    kinds, decode, wrong = list_kinds(), load_guard().processor.tokenizer.decode, []
    for stack in STACKS:
        for kind in kinds.keys() - {"sampling", "aborted"}:
            indices = [index for index, request in enumerate(requests) if request == (stack, kind)]
            expected = expect_at(stack, indices, max_new_tokens=NEW, **kinds[kind].theirs)
            for index, tokens in zip(indices, expected, strict=True):
                wanted = cut_at_stop(tokens, STOPS, decode) if kind == "stops" else tokens
                if list(outputs[index].outputs[0].token_ids) != wanted:
                    wrong.append((index, stack, kind))
    return wrong


@pytest.mark.parametrize("name", ENGINES)
def test_many_requests_of_all_kinds_answer_as_the_guard_does(name):
    llm, requests = start_engine(**ENGINES[name]), assign(COUNT)
    try:
        outputs = {int(index): output for index, output in run(llm, requests).items()}
        counts, scheduler = llm.guard_counts(), find_scheduler(llm)
        assert counts["alone"] == counts["failed"] == 0
        assert len(scheduler.groups) == len(scheduler.requests) == len(find_runner_guard(llm)._states) == 0
        assert (scheduler.group_preemptions > 0) == (name != "small budget")
        answered = {index for index, (_, kind) in enumerate(requests) if kind != "aborted"}
        assert answered <= outputs.keys()
        wrong = find_wrong(requests, outputs)
        sampled = [index for index, (_, kind) in enumerate(requests) if kind == "sampling"]
        wrong += [
            (index, *requests[index])
            for index in sampled
            if not follow_answer(index, requests[index][0], outputs[index])
        ]
        print(
            f"{name}: {COUNT} prompts, {len(answered)} answered, {len(wrong)} wrong, {counts}, preempted {scheduler.group_preemptions}"
        )
        assert wrong == []
    finally:
        stop_engine(llm)
