"""Groups under asynchronous scheduling, in a real vLLM on a CPU whose streams and events do nothing.

vLLM switches asynchronous scheduling off on a CPU; what runs here is its asynchronous scheduler and runner all the same: a step is scheduled
before the tokens of the one before are known. Needs vLLM in an environment of its own: `make test-vllm`, and
`make test-vllm-second` for the second model runner.
"""

from __future__ import annotations

from contextlib import nullcontext
from importlib.util import find_spec
from types import SimpleNamespace

import pytest

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("default"),
    pytest.mark.timeout(1800),
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed here: make test-vllm"),
]
if find_spec("vllm") is not None:
    import torch
    from vllm import SamplingParams
    from vllm.platforms.cpu import CpuPlatform
    from vllm_engine import answer_mixed, expect, find_scheduler, start_engine, stop_engine

NEW = 24
STACKS = ("vdd", "vcd", "vcd+vdd", "vsv", "pai", None)
UNDER_STRESS = {
    "small budget": {"max_num_batched_tokens": 96, "max_num_seqs": 16, "enable_prefix_caching": False},
    "few blocks, prefix cache": {"max_num_batched_tokens": 128, "num_gpu_blocks_override": 20},
}


class Idle:
    """A stream or an event that does nothing."""

    device = None

    def __init__(self, *_args, **_options):
        pass

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_args, **_options: None


@pytest.fixture
def async_on_cpu(monkeypatch):
    """Let asynchronous scheduling through on a CPU."""
    check = CpuPlatform.check_and_update_config.__func__

    def keep_async(cls, config):
        wanted = config.scheduler_config.async_scheduling
        check(cls, config)
        config.scheduler_config.async_scheduling = wanted

    monkeypatch.setattr(CpuPlatform, "check_and_update_config", classmethod(keep_async))
    for name in ("Stream", "Event", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, Idle)
    monkeypatch.setattr(torch.cuda, "stream", lambda _stream: nullcontext())
    monkeypatch.setattr("lvlm_guard.engines.vllm.llm.current_platform", SimpleNamespace(is_cpu=lambda: False))


@pytest.mark.parametrize("name", UNDER_STRESS)
def test_groups_are_kept_in_step_where_steps_overlap(name, async_on_cpu):
    llm = start_engine(**UNDER_STRESS[name], async_scheduling=True)
    try:
        assert type(find_scheduler(llm)).__name__ == "AsyncGangScheduler"
        count = 2 * len(STACKS)
        parameters = SamplingParams(temperature=0, max_tokens=NEW, min_tokens=NEW)
        outputs = answer_mixed(llm, [STACKS[index % len(STACKS)] for index in range(count)], parameters)
        expected = [expect(stack, count, max_new_tokens=NEW, min_new_tokens=NEW) for stack in STACKS]
        wanted = [expected[index % len(STACKS)][index] for index in range(count)]
        assert [index for index in range(count) if outputs[index] != wanted[index]] == []
        scheduler, counts = find_scheduler(llm), llm.guard_counts()
        print(name, counts, "groups preempted:", scheduler.group_preemptions)
        assert counts["alone"] == counts["failed"] == 0
        assert (scheduler.group_preemptions > 0) == name.startswith("few blocks")
        assert len(scheduler.groups) == len(scheduler.requests) == 0
    finally:
        stop_engine(llm)
