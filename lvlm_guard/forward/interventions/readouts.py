"""Next-token logits of inner layers: captured hidden states through norm and head in one product."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lvlm_guard import anatomy
from lvlm_guard.errors import ModelRefused

TOLERANCE = 1e-3
_checked: weakref.WeakSet[nn.Module] = weakref.WeakSet()


class Lens:
    """Reads hidden states as next-token logits, as the model itself reads its last layer.

    Args:
        module: The module that decodes.
        layers: Layer outputs wanted, 1 to the depth.

    Raises:
        ModelRefused: Head or final norm cannot be found.
    """

    def __init__(self, module: nn.Module, layers: frozenset[int]) -> None:
        self._module = module
        self.layers = layers
        head = module.get_output_embeddings()  # type: ignore[operator]
        norm = anatomy.final_norm(module)
        if head is None or norm is None:
            raise ModelRefused(f"{type(module).__name__} shows no head or no final norm, so layers cannot be read out.")
        self.head: nn.Module = head
        self._norm: nn.Module = norm

    def captured(self, depth: int) -> list[int]:
        """Outputs to capture: the wanted ones, and the last until the lens was checked on it."""
        return sorted(self.layers if self.is_checked else self.layers | {depth})

    @property
    def is_checked(self) -> bool:
        """Whether the last layer of this model was found to be what it says itself."""
        return self._module in _checked

    def logits(self, hidden: Sequence[Tensor], *, final_norm: bool) -> Tensor:
        """Logits `[layers, rows, positions, vocab]` of hidden states `[rows, positions, hidden]`, one head product."""
        return self.scaled(self.head(self.stacked(hidden, final_norm=final_norm)))

    def stacked(self, hidden: Sequence[Tensor], *, final_norm: bool) -> Tensor:
        """What the head reads, `[layers, rows, positions, hidden]`, where the last of them lies."""
        stacked = torch.stack([one.to(hidden[-1].device) for one in hidden])
        return self._norm(stacked) if final_norm else stacked

    def check(self, last: Tensor, logits: Tensor) -> None:
        """Refuse a model whose last layer, read this way, is not what it says itself; once for each model.

        Raises:
            ModelRefused: The lens of the last layer differs from the logits.
        """
        read = self.logits([last], final_norm=True)[0].float().to(logits.device)
        error = float((read - logits.float()).abs().max() / logits.float().abs().max().clamp_min(1e-6))
        if not error <= TOLERANCE * (1 if logits.dtype == torch.float32 else 30):
            raise ModelRefused(
                f"Reading the last layer of {type(self._module).__name__} through norm and head differs from its "
                f"logits by {error:.3g} of their size, so inner layers cannot be read out."
            )
        _checked.add(self._module)

    def scaled(self, logits: Tensor) -> Tensor:
        """What some models do between head and logits, by the names their configs give it."""
        config: Any = self._module.config.get_text_config(decoder=True)  # type: ignore[union-attr, operator]
        if (scale := getattr(config, "logit_scale", None)) is not None:
            logits = logits * scale
        if (scale := getattr(config, "logits_scaling", None)) is not None:
            logits = logits / scale
        if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
            logits = torch.tanh(logits / cap) * cap
        return logits
