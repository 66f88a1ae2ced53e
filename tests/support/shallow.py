"""Tiny models of few layers, and refusals that leave no hook."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from lvlm_guard import Guard
from lvlm_guard.testing import tiny


def make_shallow(depth: int) -> tuple[Any, dict[str, Tensor]]:
    """Return a tiny model of `depth` layers, and inputs."""
    model: Any
    model, inputs = tiny("llava")
    decoder = model.get_decoder()
    decoder.layers = decoder.layers[:depth]
    decoder.config.num_hidden_layers = depth
    return model, inputs


def check_refusal(model: Any, inputs: Any, strategy: Any, error: type[Exception], words: str) -> None:
    """Check that a call raises `error`, and leaves no hook behind."""
    model.generate(**inputs, max_new_tokens=1)  # transformers leaves capture hooks of its own behind a first call
    before = [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules()]
    with pytest.raises(error, match=words):
        Guard(model, None, [strategy]).generate(**inputs, max_new_tokens=2, do_sample=False)
    assert before == [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules()]
