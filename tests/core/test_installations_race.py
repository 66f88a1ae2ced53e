"""A hook that another thread takes off in the middle of a forward is called as torch then calls it, and does nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lvlm_guard.forward.installations import hook_with_kwargs, register


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("with_kwargs", [True, False])
def test_a_hook_taken_off_while_a_forward_runs_does_nothing(before, with_kwargs):
    module, user, calls = nn.Identity(), object(), []
    register(module, user, lambda *arguments: calls.append(len(arguments)), before=before, with_kwargs=with_kwargs)
    module(torch.ones(1))
    assert calls == [3 + with_kwargs - before]
    marks = module._forward_pre_hooks_with_kwargs if before else module._forward_hooks_with_kwargs
    marks.clear()  # what a removal by another thread takes away between torch's look at the hooks and its call
    module(torch.ones(1))
    assert len(calls) == (1 if with_kwargs else 2)


@pytest.mark.parametrize("before", [True, False])
def test_a_hook_of_no_call_that_is_taken_off_while_a_forward_runs_does_nothing(before):
    module, calls = nn.Identity(), []
    handle = hook_with_kwargs(module, lambda *arguments: calls.append(len(arguments)), before=before)
    module(torch.ones(1))
    assert calls == [4 - before]
    marks = module._forward_pre_hooks_with_kwargs if before else module._forward_hooks_with_kwargs
    marks.clear()  # as above
    module(torch.ones(1))
    handle.remove()
    assert calls == [4 - before]
    assert not module._forward_pre_hooks
    assert not module._forward_hooks
