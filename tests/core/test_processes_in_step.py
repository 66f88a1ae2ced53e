"""Processes that run every forward together, as FSDP and ZeRO-3 need it, and whose answers end at different lengths."""

from __future__ import annotations

import pytest
import torch
from processes import run_in_processes
from sharded import STACKS, Call, OwnCache, answer_alone, answer_together

from lvlm_guard import Guard, ModelRefused
from lvlm_guard.forward.executors.agreement import holds_anywhere
from lvlm_guard.testing import tiny

CALLS = [Call(stack) for stack in STACKS]
MODES = [
    Call("blind", {"num_beams": 2}),
    Call("noised", {"do_sample": True}),
    Call("longer", {"use_cache": False}),
    Call("noised", {"prompt_lookup_num_tokens": 2, "max_matching_ngram_size": 1}),
]
ONE_CANNOT = Call("blind", {}, {"past_key_values": OwnCache})


def cut(ids, call, rank):
    """Drop what plain generate itself adds with drafts: tokens of a process that had ended and waits for others."""
    if "prompt_lookup_num_tokens" not in call.settings or not call.ends:
        return ids
    return ids[: ids.index(call.ends[rank]) + 1]


def check(way, count, calls):
    prepared = [answer_alone(call, count) for call in calls]
    results = run_in_processes(answer_together, count, way, [call for call, _ in prepared])
    for number, (call, wanted) in enumerate(prepared):
        here = [of_process[number] for of_process in results]
        for kind in ("answer", "attached"):
            assert [cut(result[kind], call, rank) for rank, result in enumerate(here)] == wanted, call
        assert len({result["forwards"] for result in here}) == 1, (call, here)
        assert count == 1 or len({len(ids) for ids in wanted}) > 1, (call, wanted)
    return [[of_process[number] for of_process in results] for number in range(len(calls))]


@pytest.mark.slow
def test_two_processes_answer_as_one_does_and_none_waits_for_ever():
    results = check("replicated", 2, [*CALLS, *MODES])
    assert {result["executor"] for result in results[0]} == {"batched"}


@pytest.mark.slow
def test_one_process_that_cannot_decode_in_one_batch_keeps_the_others_from_it():
    ((first, second),) = check("replicated", 2, [ONE_CANNOT])
    assert (first["executor"], second["executor"]) == ("sequential", "sequential")
    assert "another process" in first["reason"]
    assert "another process" not in second["reason"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("way", ["fully_shard", "wrapped"])
def test_weights_that_processes_share(way, count):
    check(way, count, CALLS if (way, count) == ("fully_shard", 2) else [Call("noised"), Call("blind")])


def test_without_other_processes_facts_are_ones_own():
    assert holds_anywhere(True, False, device=torch.device("cpu")) == (True, False)


def test_a_wrapper_that_only_runs_forwards_is_refused_and_the_model_inside_named():
    model, _ = tiny("llava")
    with pytest.raises(ModelRefused, match=r"^DataParallel has no .* Guard\(model.module, ...\)"):
        Guard(torch.nn.DataParallel(model))


class Handing(torch.nn.Module):
    """Hands on what it has not, as `FullyShardedDataParallel` does."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)


def test_a_wrapper_that_hands_on_generate_can_be_attached_to():
    model, inputs = tiny("llava")
    settings = {"max_new_tokens": 4, "do_sample": False}
    wrapper = Handing(model)
    guard = Guard(wrapper, None, STACKS["noised"])
    plain = model.generate(**inputs, **settings)
    wanted = guard.generate(**inputs, **settings)
    assert not torch.equal(plain, wanted), "no power"
    with guard.attached():
        assert torch.equal(wrapper.generate(**inputs, **settings), wanted)
    assert "generate" not in vars(wrapper)
    assert torch.equal(wrapper.generate(**inputs, **settings), plain)
