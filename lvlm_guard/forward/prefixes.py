"""A prompt run once for its own sake: hidden states of every layer at its last position, and logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lvlm_guard import anatomy
from lvlm_guard.forward.protocol import Prepared
from lvlm_guard.forward.sequential import BranchRun
from lvlm_guard.generation import Prefix


def run(prepared: Prepared) -> Prefix:
    """Run a prepared prompt with nothing edited inside."""
    seen: list[Tensor] = []

    def keep(_: nn.Module, _args: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        seen.append(hidden[:, -1].float())

    handles = [layer.register_forward_hook(keep) for layer in anatomy.decoder_layers(prepared.module)]
    try:
        nothing = prepared.input_ids[:, :0]
        logits = BranchRun(prepared).feed(prepared.module, nothing, 0, 1, first=True)
    finally:
        for handle in handles:
            handle.remove()
    return Prefix(torch.stack(seen, dim=1), logits[:, -1].float())
