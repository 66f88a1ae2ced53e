"""Artefacts of random directions for tiny models, and the turns of the steering formulas."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lvlm_guard import Artefact, Guard
from lvlm_guard.strategy.artefacts import describe_model
from lvlm_guard.testing import StrategyContract
from lvlm_guard.testing.contract import Words

TOKENS = {"llava": 26, "qwen2_vl": 1, "gemma3": 16}
"""Tokens of each vision tower; where patches of several pictures are laid end to end, their mean."""


def make_artefact(
    folder: Path, kind: str, architecture: str, model: Any, tokens: int | None = None
) -> tuple[Path, dict[str, Tensor]]:
    """Write an artefact of random directions for a tiny model; return its path and tensors."""
    draw = torch.Generator().manual_seed(5)
    if kind == "vti":
        shape = (2, TOKENS[architecture] if tokens is None else tokens, 32)
        sizes = {"decoder": (3, 32), "vision": shape}
        tensors = {name: torch.randn(size, generator=draw) for name, size in sizes.items()}
    else:
        tensors = {"directions": torch.linalg.qr(torch.randn(3, 32, 32, generator=draw)).Q[:, :6].contiguous()}
    path = folder / f"{kind}-{architecture}.safetensors"
    Artefact(kind, tensors, {"model": f"tiny {architecture}", **describe_model(model)}).save(path)
    return path, tensors


def unit(vector: Tensor) -> Tensor:
    """Scale vectors `[..., hidden]` to norm 1."""
    return torch.nn.functional.normalize(vector, dim=-1, eps=0.0)


def turn_towards(hidden: Tensor, towards: Tensor) -> Tensor:
    """Turn hidden states `[..., hidden]` and keep their norms."""
    norms: Tensor = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True)
    return norms * unit(unit(hidden) + towards)


def without_image(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a prompt without placeholders and the tokens that fence them."""
    ids = [token for token in inputs["input_ids"][0].tolist() if token not in (98, 99, 100, 102, 103)]
    tensor = torch.tensor([ids])
    return {"input_ids": tensor, "attention_mask": torch.ones_like(tensor)}


class FittedContract(StrategyContract):
    """The contract of a strategy that needs an artefact: every model gets one of its own."""

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path

    def guard(self, model: Any, *strategies: Any, **options: Any) -> Any:
        """Build the guard with the strategy's artefact."""
        kind, architecture = strategies[0].name, model.config.model_type
        path, _ = make_artefact(self.folder, kind, architecture, model)
        fitted = [dataclasses.replace(strategy, artefact=path) for strategy in strategies]
        return Guard(model, Words(), fitted, **options)
