"""A prompt run once for its own sake: hidden states of every layer at its last position, and logits."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from lvlm_guard import anatomy
from lvlm_guard.forward.interventions.compiled import as_written
from lvlm_guard.forward.protocol import Prepared
from lvlm_guard.forward.sequential import BranchRun
from lvlm_guard.strategy.generation import PromptStates

_seeing: ContextVar[dict[int, Tensor] | None] = ContextVar("lvlm_guard_seeing", default=None)


def run(prepared: Prepared) -> PromptStates:
    """Run a prepared prompt with nothing edited inside."""
    layers = anatomy.decoder_layers(prepared.module)
    seen: dict[int, Tensor] = {}
    token = _seeing.set(seen)

    def keep(index: int) -> Callable[..., None]:
        def hook(_: nn.Module, _args: Any, output: Any) -> None:
            if _seeing.get() is seen:  # other threads run the same layers
                hidden = output[0] if isinstance(output, tuple) else output
                seen[index] = hidden[:, -1].float()

        return hook

    handles = [layer.register_forward_hook(keep(index)) for index, layer in enumerate(layers)]
    try:
        nothing = prepared.input_ids[:, :0]
        with as_written():
            logits = BranchRun(prepared).feed(prepared.module, nothing, 0, 1, first=True)
    finally:
        _seeing.reset(token)
        for handle in handles:
            handle.remove()
    for index in range(1, len(layers)):
        seen.setdefault(index, seen[index - 1])  # a prompt without image skips layers of cross-attention
    device = prepared.input_ids.device
    hidden = torch.stack([seen[index].to(device) for index in range(len(layers))], dim=1)
    return PromptStates(hidden, logits[:, -1].float().to(device))
