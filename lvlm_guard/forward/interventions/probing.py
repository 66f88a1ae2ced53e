"""The decoder run once on random embeddings, to observe what its layers do."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lvlm_guard import anatomy
from lvlm_guard.errors import ModelRefused
from lvlm_guard.forward.interventions.compiled import run_uncompiled
from lvlm_guard.protocols import Model

POSITIONS = 16
PADDED = 5
"""Positions of padding at the left of the second row."""
IMAGE_STATES = 19
"""States that layers attend to beside the prompt; not as many as positions, so that they are told apart."""
ACROSS = ("cross_attention_states", "encoder_hidden_states")
"""What decoders call states that their layers attend to beside the prompt."""


@torch.no_grad()
def run_decoder(module: Model, *, padded: bool = False) -> Tensor:
    """Run the decoder on random embeddings, or on random tokens where it asks for those.

    Args:
        module: The module that decodes.
        padded: Whether to run a second row with padding at its left.

    Returns:
        What the decoder returns first, its last hidden states.

    Raises:
        ModelRefused: It runs on neither.
    """
    attempts = (_attempt(module, inputs) for inputs in make_inputs(module, padded=padded))
    failures = []
    for states in attempts:
        if isinstance(states, Tensor):
            return states
        failures.append(states)
    raise ModelRefused(
        f"The decoder of {type(module).__name__} runs neither on embeddings nor on tokens alone ({failures[0]}), so what its "
        "layers do cannot be observed, and nothing can be done inside them."
    ) from failures[0]


def _attempt(module: Model, inputs: Mapping[str, Any]) -> Tensor | Exception:
    try:
        with run_uncompiled():
            states: Tensor = anatomy.decoder(module)(**inputs)[0]
    except (TypeError, ValueError, RuntimeError, AttributeError, KeyError, IndexError) as error:
        return error
    return states


def valid_positions(states: Tensor) -> Tensor:
    """Which of the positions that ran with padding are none, bool `[2, positions]`."""
    valid = torch.ones(2, POSITIONS, dtype=torch.bool, device=states.device)
    valid[1, :PADDED] = False
    return valid


def make_inputs(module: Any, *, padded: bool = False) -> Iterator[dict[str, Any]]:
    """Embeddings of the size of the model's own, then tokens, and an image where layers attend to one."""
    weight, rows = _find_embeddings(module).weight, 2 if padded else 1
    device = _find_device(module, weight)
    parameters = inspect.signature(anatomy.decoder(module).forward).parameters
    draw = torch.Generator("cpu").manual_seed(0)
    has_numbers = weight.is_floating_point() and not weight.is_meta
    spread = float(weight[:POSITIONS].float().std()) if has_numbers else 1.0

    def states(positions: int) -> Tensor:
        drawn = torch.randn(rows, positions, weight.shape[-1], generator=draw, device="cpu") * spread
        return drawn.to(device, weight.dtype if weight.is_floating_point() else None)

    tokens = torch.randint(min(weight.shape[0], 1000), (rows, POSITIONS), generator=draw, device="cpu").to(device)
    shared: dict[str, Any] = {"use_cache": False}
    if padded:
        shared["attention_mask"] = valid_positions(tokens).long()
    across = {name: states(IMAGE_STATES) for name in ACROSS if name in parameters}
    for image in (across, {}) if across else ({},):
        yield {"inputs_embeds": states(POSITIONS), **image, **shared}
        yield {"input_ids": tokens, **image, **shared}


def _find_embeddings(module: Any) -> Any:
    """The embeddings of the tokens, as the model names them or as its decoder holds them.

    Raises:
        ModelRefused: There are none.
    """
    try:
        return module.get_input_embeddings()
    except NotImplementedError:
        parts = anatomy.decoder(module).modules()
    embeddings = next((part for part in parts if isinstance(part, nn.Embedding)), None)
    if embeddings is None:
        raise ModelRefused(
            f"{type(module).__name__} shows no embeddings of its tokens, so nothing can be done inside it."
        )
    return embeddings


def _find_device(module: Any, weight: Tensor) -> torch.device:
    """Where the decoder takes its inputs; weights that are offloaded lie nowhere."""
    if not weight.is_meta:
        return weight.device
    device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    return torch.device("cpu" if device is None else device)
