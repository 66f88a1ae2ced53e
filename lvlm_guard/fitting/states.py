"""Hidden states of a model, and outputs of its parts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lvlm_guard.anatomy import decoder_layers
from lvlm_guard.forward import run_uncompiled


def compute_hidden_states(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the residual stream after each decoder layer `[layers, length, hidden]` of a batch of one row, in fp32."""
    with record_outputs(decoder_layers(model)) as outputs:
        model(**batch, use_cache=False)
    return torch.stack([output[0] for output in outputs])


@contextmanager
def record_outputs(modules: Iterable[nn.Module]) -> Iterator[list[Tensor]]:
    """Give a list to which every output of these modules is appended, in fp32, all on the device of the first.

    Compiled parts of the model run uncompiled meanwhile, since a compiled graph ignores hooks.
    """
    outputs: list[Tensor] = []

    def record(_: nn.Module, _args: Any, output: Any) -> None:
        hidden = (output[0] if isinstance(output, tuple) else output).float()
        outputs.append(hidden.to(outputs[0].device) if outputs else hidden)

    handles = [module.register_forward_hook(record) for module in modules]
    try:
        with run_uncompiled():
            yield outputs
    finally:
        for handle in handles:
            handle.remove()
