"""What a guarded decode step launches and reads, counted in whole calls of generate."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from counted_operations import CountOperations
from lvlm_guard_contrastive import VDD
from lvlm_guard_kernels import Combination, combine, dispatch, launch, record_paths, settle_environment

from lvlm_guard import Contrast, Guard, Plausible, hookimpl
from lvlm_guard.testing import tiny

OURS = "LVLM_GUARD_", "TRITON_"


def generate(tokens, stack):
    model, inputs = tiny("llava")
    lengths = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
    return Guard(model, stack=stack).generate(**inputs, **lengths)


@pytest.fixture
def launches(monkeypatch):
    """Names of the kernels that are launched."""
    names, run = [], launch.run

    def note(kernel, *arguments, **constants):
        names.append(kernel.__name__)
        run(kernel, *arguments, **constants)

    monkeypatch.setattr(launch, "run", note)
    return names


def test_a_guarded_step_of_vdd_launches_two_kernels_more_than_plain(on_triton, launches):
    counts = []
    for tokens in (2, 3):
        launches.clear()
        on_triton.clear()
        generate(tokens, [VDD()])
        assert set(launches) == {"find_slice_best", "combine_rows"}
        assert set(on_triton) == {"combine:triton"}
        counts.append(len(launches))
    assert counts == [2 * 2, 2 * 3]


@dataclass(frozen=True)
class Adaptive:
    """Asks for every statistic of main several times, each in a weight of its own."""

    name: ClassVar[str] = "adaptive"
    neutral: ClassVar[dict[str, float]] = {"alpha": 0.0}

    alpha: float = 0.1

    @hookimpl
    def branches(self, gen):
        """Declare VDD's branches."""
        return VDD(blank="none").branches(gen)

    @hookimpl
    def terms(self, gen):
        """Weigh the contrast by all that main's distribution has."""
        (branch,) = VDD(blank="none").branches(gen)
        for _ in range(2):
            yield Contrast(branch, lambda now: now.entropy("main") * self.alpha)
            yield Contrast(branch, lambda now: now.max_probability("main") * now.log_sum_exp("main") * self.alpha)
        yield Plausible(0.1)


def test_all_statistics_of_one_source_are_one_kernel_call_a_step(on_triton, launches):
    counts = []
    for tokens in (2, 3):
        launches.clear()
        on_triton.clear()
        generate(tokens, [Adaptive()])
        assert on_triton.count("statistics:triton") == on_triton.count("combine:triton") == tokens
        counts.append(len(launches))
    assert counts == [3 * 2, 3 * 3]  # a vocabulary of one slice is measured in one launch


@pytest.mark.parametrize("provider", ["torch", "triton"])
def test_no_step_reads_the_environment(request, monkeypatch, provider):
    if provider == "triton":
        request.getfixturevalue("on_triton")
    else:
        monkeypatch.setenv("LVLM_GUARD_KERNELS", "torch")
    reads, read = [], os._Environ.__getitem__

    def note(environment, name):
        if str(name).startswith(OURS):
            reads.append(name)
        return read(environment, name)

    monkeypatch.setattr(os._Environ, "__getitem__", note)
    counts = []
    for tokens in (2, 4):
        reads.clear()
        generate(tokens, [Adaptive()])
        counts.append(sorted(reads))
    assert "LVLM_GUARD_KERNELS" in counts[0]
    assert [name for name in counts[0] if name in ("LVLM_GUARD_KERNELS", "TRITON_INTERPRET")] == [
        name for name in counts[1] if name in ("LVLM_GUARD_KERNELS", "TRITON_INTERPRET")
    ]


def test_a_settled_environment_holds_inside_and_not_after(monkeypatch):
    neutral = Combination(torch.zeros(1, 1, 5))
    monkeypatch.setenv("LVLM_GUARD_KERNELS", "torch")
    with record_paths() as ran:
        with settle_environment():
            monkeypatch.setenv("LVLM_GUARD_KERNELS", "triton")
            combine(neutral)
        combine(neutral)
    assert ran == ["combine:torch", "combine:triton"]
    with pytest.raises(RuntimeError, match="inside"), settle_environment():
        raise RuntimeError("inside")
    assert dispatch._settled.get() is None


@pytest.mark.parametrize("count", [1, 4])
def test_weights_on_the_device_are_read_where_they_lie(on_triton, monkeypatch, count):
    main, *sources = torch.randn(1 + count, 2, 1, 70, generator=torch.Generator().manual_seed(0))
    weights = [torch.rand(2, 1) for _ in sources]
    combination = Combination(main, sources, weights, torch.rand(2, 1), 0.1)
    given = []
    monkeypatch.setattr(launch, "run", lambda kernel, grid, arguments, **_: given.append((kernel, *map(id, arguments))))
    with CountOperations() as operations:
        combine(combination)
    assert len(given) == 2
    given = given[1]
    assert {id(weight) for weight in (*weights, combination.main_weight)} <= set(given)
    assert operations.names == []
