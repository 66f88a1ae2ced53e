"""What keeps main and its branches from being decoded as one batch, found at the first step after the prefill."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lvlm_guard import anatomy
from lvlm_guard.cache_names import CACHE_NAMES
from lvlm_guard.forward import caches
from lvlm_guard.forward.executors.agreement import holds_anywhere
from lvlm_guard.forward.executors.batch_trial import try_batch
from lvlm_guard.forward.executors.batched import PER_ROW_IDS
from lvlm_guard.forward.executors.executor import Inputs, Run
from lvlm_guard.forward.executors.first_step import FirstStep

PIXEL_SIZES = ("image_grid_thw", "video_grid_thw", "image_sizes", "second_per_grid_ts")  # unused without pixels
KNOWN_INPUTS = frozenset({*CACHE_NAMES, "attention_mask", "position_ids", "cache_position", *PER_ROW_IDS, *PIXEL_SIZES})
ELSEWHERE = "another process that runs in step with this one cannot decode in one batch"


@dataclass(frozen=True)
class BatchScope:
    """What the rows of one batch have to do with, beside its forwards.

    Args:
        row_list: Name of an argument of generate with an entry for each row of main, or None.
        in_step: Whether other processes run every forward together with this one (`synced_gpus`).
    """

    row_list: str | None = None
    in_step: bool = False


def find_obstacle(first: FirstStep, forward: Run, scope: BatchScope) -> str | None:
    """Why decoding as one batch would not be exact, or None when it is.

    Args:
        first: The first step after the prefill.
        forward: The module's own forward, to try what cannot be read from its arguments.
        scope: What else the batch has to do with.
    """
    obstacle, is_padded = _find_known(first, scope.row_list), first.is_ragged
    if scope.in_step:
        device = first.inputs["input_ids"].device
        is_elsewhere, is_padded = holds_anywhere(obstacle is not None, is_padded, device=device)
        obstacle = obstacle or (ELSEWHERE if is_elsewhere else None)
    if obstacle is not None:
        return obstacle
    fault = try_batch(first.main.module, forward, first.inputs, is_padded=is_padded)
    if scope.in_step and holds_anywhere(fault is not None, device=device)[0]:
        return fault or ELSEWHERE
    return fault


def _find_known(first: FirstStep, row_list: str | None) -> str | None:
    """What can be said without a trial."""
    if row_list is not None:
        return f"{row_list} lists something for each row, and rows of branches have no entry in it"
    if first.main.module.config.is_encoder_decoder:
        return "the model is an encoder-decoder"
    mask = first.inputs.get("attention_mask")
    if not (mask is None or caches.is_static(first.cache) or (isinstance(mask, Tensor) and mask.ndim == 2)):  # noqa: PLR2004
        return "the attention mask is not two-dimensional"
    return (
        _find_unknown_input(first)
        or caches.find_obstacle(first.caches)
        or _find_unknown_mask(first)
        or _find_unknown_position(first)
    )


def _find_unknown_input(first: FirstStep) -> str | None:
    """An argument that belongs to rows, or differs between main and a branch, and is not known to do so."""
    for name, value in first.inputs.items():
        is_per_row = isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == first.rows
        is_list = isinstance(value, (list, tuple)) and len(value) == first.rows
        if name not in KNOWN_INPUTS and (is_per_row or is_list):
            return f"the decode takes a per-row input this executor does not know ({name})"
    for key, inputs in first.branch_inputs.items():
        for name in (set(inputs) | set(first.inputs)) - KNOWN_INPUTS:
            if not _is_same(inputs.get(name), first.inputs.get(name)):
                return f"branch {key!r} decodes with another {name} than main"
    return None


def _find_unknown_mask(first: FirstStep) -> str | None:
    """Positions in a mask or a cache that no token stands for: a mask made from those of the prompts says nothing of them."""
    mask = first.inputs.get("attention_mask")
    tokens = first.main.length + first.step.past + first.step.new
    if isinstance(mask, Tensor) and not caches.is_static(first.cache) and mask.shape[1] != tokens:
        return f"the model masks {mask.shape[1]} positions where there are {tokens} tokens"
    if mask is None and first.holds_more and any(run.prompt_mask is not None for run in first.branches.values()):
        return "the cache holds positions that no token of the prompt stands for, and the mask of a branch says nothing of them"
    return None


def _is_same(value: Any, main_value: Any) -> bool:
    """Whether two tensors are equal; what is no tensor is a setting of the call."""
    if not isinstance(value, Tensor) or not isinstance(main_value, Tensor):
        return isinstance(value, Tensor) == isinstance(main_value, Tensor)
    return value.shape == main_value.shape and torch.equal(value, main_value.to(value.device))


def _find_unknown_position(first: FirstStep) -> str | None:
    """Positions that only the model itself knows: it makes them from what one batch changes, the length of the cache."""
    main = first.inputs.get("position_ids")
    if main is None and anatomy.rope_owners(first.main.module):
        return "this version makes rotary positions inside the forward"
    for key, inputs in first.branch_inputs.items():
        if not _fits(inputs, main):
            return f"branch {key!r} decodes with position ids of another kind than main"
    if first.is_ragged and main is None:
        return "the model makes its own positions, and the prompts differ in length"
    if first.is_ragged and first.holds_more:
        return "the cache holds an image that no token of the prompt stands for, and the caches differ in length"
    return None


def _fits(inputs: Inputs, main: Tensor | None) -> bool:
    positions = inputs.get("position_ids")
    if not isinstance(positions, Tensor) or not isinstance(main, Tensor):
        return positions is None and main is None
    return positions.ndim == main.ndim and positions.shape[:-2] == main.shape[:-2]
