"""Measured costs against calls whose times, forwards and memory are known."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from lvlm_guard import Guard
from lvlm_guard.bench.running import cost
from lvlm_guard.bench.running.cost import CUDA_PEAK, NOT_MEASURED, RESIDENT_GROWTH, Spread, measure_costs
from lvlm_guard.call.report import Forwards
from lvlm_guard.errors import InputError
from lvlm_guard.testing import tiny

BATCH = {"input_ids": torch.zeros(2, 5, dtype=torch.long)}
MEGABYTE = 2**20
STAND_STILL = [0.0]


@pytest.fixture
def now(monkeypatch):
    """Seconds on a clock that only the calls themselves move."""
    seconds = [0.0]
    monkeypatch.setattr(cost, "time", types.SimpleNamespace(perf_counter=lambda: seconds[0]))
    return seconds


def taking(now, first, token, *, drafts=1, note=None, allocate=0):
    """A generate that takes so many milliseconds for the first and for every other token."""

    def generate(input_ids, max_new_tokens, min_new_tokens, do_sample, stopping_criteria):
        assert min_new_tokens == max_new_tokens
        assert not do_sample
        if note is not None:
            note(max_new_tokens)
        held = torch.ones(allocate, dtype=torch.uint8)
        for _ in range(drafts):
            for number in range(max_new_tokens):
                now[0] += (token if number else first) / 1e3
                assert not any(criterion(input_ids, None).any() for criterion in stopping_criteria)
        del held
        now[0] += 0.001
        return torch.cat([input_ids, torch.ones(input_ids.shape[0], max_new_tokens, dtype=torch.long)], dim=1)

    return generate


def about(value):
    return pytest.approx(value)


@pytest.mark.slow
def test_times_are_those_the_calls_take(now):
    """The call ends a millisecond after its last token; the time per token holds it too."""
    slow = measure_costs({"plain": taking(now, 10, 2), "slow": taking(now, 30, 6)}, [BATCH], new_tokens=6)["slow"]
    assert slow.first_ms.median == about(30)
    assert slow.token_ms.median == about(31 / 5)
    assert slow.call_ms.median == about(61)
    assert slow.tokens_per_second.median == about(2 * 6 / 0.061)
    assert slow.first_ratio.median == about(30 / 10)
    assert slow.token_ratio.median == about(31 / 11)
    assert slow.call_ratio.median == about(61 / 21)
    assert (slow.calls, slow.tokens) == (5, 6.0)


def test_plain_is_the_measure_of_itself(now):
    plain = measure_costs({"plain": taking(now, 10, 2)}, [BATCH])["plain"]
    assert plain.first_ratio == plain.token_ratio == plain.call_ratio == Spread(1.0, 1.0, 1.0)


@pytest.mark.slow
def test_ways_take_turns_and_the_first_moves_on(now):
    calls = []
    ways = {
        name: taking(now, 1, 1, note=functools.partial(lambda name, tokens: calls.append((name, tokens)), name))
        for name in ("plain", "a", "b")
    }
    measure_costs(ways, [BATCH, BATCH], new_tokens=4, rounds=2)
    warm, measured = calls[:3], calls[3:]
    assert warm == [("plain", 3), ("a", 3), ("b", 3)]
    assert [name for name, _ in measured] == [
        "plain",
        "a",
        "b",
        "a",
        "b",
        "plain",
        "b",
        "plain",
        "a",
        "plain",
        "a",
        "b",
    ]
    assert {tokens for _, tokens in measured} == {4}


@pytest.mark.slow
def test_ratios_are_formed_within_a_round(now):
    """On a machine that slows down fourfold from round to round, twice the work stays twice the work."""
    slowness = iter([1, 1, 1, 1, 4, 4, 16, 16])

    def work(share):
        return lambda **arguments: taking(now, 3 * (factor := share * next(slowness)), factor)(**arguments)

    double = measure_costs({"plain": work(1), "double": work(2)}, [BATCH], new_tokens=2, rounds=3)["double"]
    assert double.first_ms == Spread(*(about(6 * factor) for factor in (1 + 0.4 * 3, 4, 4 + 0.6 * 12)))
    assert double.first_ratio == Spread(about(2), about(2), about(2))


def test_an_answer_drafted_twice_has_no_first_token_but_a_whole_cost(now):
    ways = {"plain": taking(now, 2, 2), "revised": taking(now, 2, 2, drafts=2)}
    revised = measure_costs(ways, [BATCH], new_tokens=5, rounds=2)["revised"]
    assert (revised.first_ms, revised.token_ms, revised.first_ratio, revised.token_ratio) == (None, None, None, None)
    assert revised.call_ratio.median == about(21 / 11)
    assert revised.tokens == 5


MEASURED_APART = """
import torch
from test_cost import BATCH, MEGABYTE, taking
from lvlm_guard.bench.running.cost import measure_costs
ways = {"plain": taking([0.0], 1, 1), "hungry": taking([0.0], 1, 1, allocate=64 * MEGABYTE)}
costs = measure_costs(ways, [BATCH], new_tokens=2, rounds=1)
print(costs["hungry"].memory, costs["plain"].peak_bytes, costs["hungry"].peak_bytes, sep=",")
"""


@pytest.mark.slow
def test_memory_of_a_call_is_the_growth_of_the_resident_set():
    """In a process of its own: one that has freed as much before may allocate without growing."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEASURED_APART],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    memory, plain, hungry = done.stdout.strip().split(",")
    if memory == NOT_MEASURED:
        pytest.skip("this system does not let a process reset its high-water mark")
    assert memory == RESIDENT_GROWTH
    assert 60 * MEGABYTE < int(hungry) < 80 * MEGABYTE
    assert int(plain) < 10 * MEGABYTE


@pytest.mark.slow
def test_where_no_peak_can_be_read_none_is_given(now, monkeypatch):
    monkeypatch.setattr(cost, "_reset_high_water", lambda: False)
    plain = measure_costs({"plain": taking(now, 1, 1)}, [BATCH])["plain"]
    assert (plain.peak_bytes, plain.memory) == (None, NOT_MEASURED)


@pytest.fixture(scope="module")
def guarded():
    model, inputs = tiny("llava", 2)
    guards = {
        "empty": Guard(model, stack=[]),
        "batched": Guard(model, stack=["vcd"], executor="batched"),
        "sequential": Guard(model, stack=["vcd"], executor="sequential"),
    }
    ways = {"plain": model.generate, **{name: guard.generate for name, guard in guards.items()}}
    ways["partial"] = functools.partial(guards["batched"].generate, use_cache=True)
    ways["wrapped"] = wrapped(model)
    return measure_costs(ways, [inputs], new_tokens=6, rounds=2)


def wrapped(model):
    def generate(**arguments):
        return model.generate(**arguments)

    return generate


def test_forwards_come_from_the_report_of_the_guard(guarded):
    assert guarded["plain"].forwards == guarded["empty"].forwards == Forwards(1.0, 1.0)
    assert guarded["batched"].forwards == guarded["partial"].forwards == Forwards(2.0, 1.0)
    assert guarded["sequential"].forwards == Forwards(2.0, 2.0)
    rows = {name: one.rows_per_forward for name, one in guarded.items()}
    assert rows == {"plain": 1, "empty": 1, "batched": 2, "sequential": 1, "partial": 2, "wrapped": None}
    assert guarded["wrapped"].forwards is None


def test_every_way_is_timed(guarded):
    print({name: round(one.token_ratio.median, 2) for name, one in guarded.items()})
    assert all(one.tokens == 6 and one.first_ms.median > 0 for one in guarded.values())


@pytest.mark.parametrize(
    ("ways", "batches", "more", "message"),
    [
        ({"guarded": taking(STAND_STILL, 0, 0)}, [BATCH], {}, "add {'plain'"),
        ({"plain": taking(STAND_STILL, 0, 0)}, [], {}, "at least one batch"),
        ({"plain": taking(STAND_STILL, 0, 0)}, [{"pixel_values": torch.zeros(1)}], {}, "tensor input_ids"),
        ({"plain": taking(STAND_STILL, 0, 0)}, [BATCH], {"new_tokens": 1}, "new_tokens >= 2"),
        ({"plain": taking(STAND_STILL, 0, 0)}, [BATCH], {"rounds": 0}, "rounds >= 1"),
        ({"plain": taking(STAND_STILL, 0, 0)}, [BATCH], {"settings": {"stopping_criteria": []}}, "leave it out"),
    ],
)
def test_what_cannot_be_measured_is_refused(ways, batches, more, message):
    with pytest.raises(InputError, match=message):
        measure_costs(ways, batches, **more)


@pytest.mark.gpu
def test_on_a_gpu_the_peak_is_allocated_memory_with_the_weights():
    model, inputs = tiny("llava", 2)
    model, inputs = model.cuda(), {name: value.cuda() for name, value in inputs.items()}
    ways = {"plain": model.generate, "vcd": Guard(model, stack=["vcd"]).generate}
    costs = measure_costs(ways, [inputs], new_tokens=6, rounds=2)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    assert all(one.memory == CUDA_PEAK and one.peak_bytes > weights for one in costs.values())
    assert costs["vcd"].forwards.prefill == 2.0
    assert costs["vcd"].first_ms.median > 0
