"""What holds of every public kernel, those added later included."""

from __future__ import annotations

import concurrent.futures
import importlib
import inspect

import lvlm_guard_kernels
import pytest
import torch
from every_kernel import KERNELS, SPECIMENS, list_results
from lvlm_guard_kernels import KernelsUnavailable, dispatch, record_paths


@pytest.fixture(params=["torch", "triton"])
def everywhere(request, monkeypatch):
    if request.param == "triton":
        request.getfixturevalue("on_triton")
    else:
        monkeypatch.setenv("LVLM_GUARD_KERNELS", "torch")


def compute(name, tensors):
    return list_results(SPECIMENS[name].call(*tensors))


def same(results, others):
    return all(torch.equal(one, other) for one, other in zip(results, others, strict=True))


@pytest.mark.parametrize("name", KERNELS)
def test_no_result_has_a_gradient_whatever_asks_for_one(everywhere, name):
    tensors = SPECIMENS[name].draw()
    expected = compute(name, tensors)
    asking = [tensor.requires_grad_() for tensor in tensors]
    for results in (compute(name, asking), compute(name, [tensor * 1.0 for tensor in asking])):
        assert not any(result.requires_grad for result in results)
        assert same(results, expected)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("name", KERNELS)
def test_modes_of_torch_change_no_result(everywhere, name):
    tensors = SPECIMENS[name].draw()
    expected = compute(name, tensors)
    with torch.inference_mode():
        assert same(compute(name, [tensor.clone() for tensor in tensors]), expected)
    with torch.autocast("cpu", torch.bfloat16):
        results = compute(name, tensors)
    assert [result.dtype for result in results] == [result.dtype for result in expected]
    assert same(results, expected)


@pytest.mark.parametrize("name", KERNELS)
def test_vmap_is_refused_and_said_so(everywhere, name):
    tensors = [tensor.expand(2, *tensor.shape) for tensor in SPECIMENS[name].draw()]
    with (
        record_paths() as ran,
        pytest.raises(KernelsUnavailable, match=r"does not run under transforms of torch\.func"),
    ):
        torch.func.vmap(lambda *values: compute(name, values)[0])(*tensors)
    assert ran == []
    compute(name, SPECIMENS[name].draw())  # for the fixture: a kernel must have run


@pytest.mark.parametrize("name", KERNELS)
def test_threads_get_what_one_gets(monkeypatch, name):
    monkeypatch.setenv("LVLM_GUARD_KERNELS", "torch")
    inputs = [SPECIMENS[name].draw(seed) for seed in range(4)]
    expected = [compute(name, tensors) for tensors in inputs]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda number: compute(name, inputs[number % 4]), range(40)))
    assert all(same(results, expected[number % 4]) for number, results in enumerate(got))


@pytest.mark.parametrize("name", KERNELS)
def test_where_triton_cannot_run_on_a_gpu_every_kernel_takes_torch_with_a_warning(monkeypatch, name):
    tensors = SPECIMENS[name].draw()
    monkeypatch.setenv("LVLM_GUARD_KERNELS", "torch")
    expected = compute(name, tensors)
    monkeypatch.setenv("LVLM_GUARD_KERNELS", "auto")
    monkeypatch.setattr(dispatch, "_is_on_gpu", lambda _: True)
    monkeypatch.setattr(dispatch, "find_obstacle", lambda *_, **__: "there is no C compiler")
    dispatch._warn_of_torch.cache_clear()
    with pytest.warns(RuntimeWarning, match="auto takes torch on a GPU, .*there is no C compiler") as warned:
        results = [compute(name, tensors) for _ in range(2)]
    assert len(warned) == 1
    assert all(same(result, expected) for result in results)
    dispatch._warn_of_torch.cache_clear()


@pytest.mark.parametrize("name", KERNELS)
def test_it_is_said_that_nothing_has_a_gradient(name):
    kernel = getattr(lvlm_guard_kernels, name)
    texts = inspect.getdoc(kernel), inspect.getdoc(importlib.import_module(kernel.__module__))
    assert any("othing is differentiated" in " ".join((text or "").split()) for text in texts)


@pytest.mark.parametrize("name", KERNELS)
def test_rows_of_none_give_none(everywhere, name):
    tensors = [
        tensor[:, :0] if tensor.dim() == 4 else tensor[:0] if tensor.dim() > 1 else tensor
        for tensor in SPECIMENS[name].draw()
    ]
    if name == "project":
        tensors[1] = SPECIMENS[name].draw()[1]
    assert all(result.numel() == 0 for result in compute(name, tensors))
