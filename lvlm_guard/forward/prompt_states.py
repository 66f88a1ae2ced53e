"""A prompt run once by itself: hidden states of every layer at its last position, and logits."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from lvlm_guard import anatomy
from lvlm_guard.forward.executors.branch_run import BranchRun
from lvlm_guard.forward.interventions.compiled import run_uncompiled
from lvlm_guard.forward.preparation import PreparedDecode
from lvlm_guard.strategy.prompt import PromptStates

_collecting: ContextVar[dict[int, Tensor] | None] = ContextVar("lvlm_guard_collecting", default=None)


def run_prompt(prepared: PreparedDecode) -> PromptStates:
    """Run a prepared prompt with nothing edited inside."""
    layers = anatomy.decoder_layers(prepared.module)
    states: dict[int, Tensor] = {}
    token = _collecting.set(states)

    def collect(index: int) -> Callable[..., None]:
        def hook(_: nn.Module, _args: Any, output: Any) -> None:
            if _collecting.get() is states:  # other threads run the same layers
                hidden = output[0] if isinstance(output, tuple) else output
                states[index] = hidden[:, -1].float()

        return hook

    handles = [layer.register_forward_hook(collect(index)) for index, layer in enumerate(layers)]
    try:
        no_tokens = prepared.input_ids[:, :0]
        with run_uncompiled():
            logits = BranchRun(prepared).feed(prepared.module, no_tokens, 0, 1, first=True)
    finally:
        _collecting.reset(token)
        for handle in handles:
            handle.remove()
    for index in range(1, len(layers)):
        states.setdefault(index, states[index - 1])  # a prompt without image skips layers of cross-attention
    device = prepared.input_ids.device
    hidden = torch.stack([states[index].to(device) for index in range(len(layers))], dim=1)
    return PromptStates(hidden, logits[:, -1].float().to(device))
