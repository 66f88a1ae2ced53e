"""Main and all branches as rows of one batch: one forward per token where that is exact."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lvlm_guard import anatomy
from lvlm_guard.forward import caches, protocol
from lvlm_guard.forward.sequential import BranchRun

PER_ROW_IDS = ("input_ids", *protocol.ALIGNED_LAST[2:])
PIXEL_SIZES = ("image_grid_thw", "video_grid_thw", "image_sizes", "second_per_grid_ts")  # unused without pixels
PLAIN = frozenset({"past_key_values", "attention_mask", "position_ids", "cache_position", *PER_ROW_IDS, *PIXEL_SIZES})


def obstacle(module: nn.Module, main_cache: Any, runs: Sequence[BranchRun], inputs: Mapping[str, Any]) -> str | None:
    """Why decoding as one batch would not be exact, or None when it is.

    Args:
        module: The module that decodes.
        main_cache: Main's cache after the prefill.
        runs: The branches, prefilled and synchronised.
        inputs: Arguments of main's first decode forward.
    """
    if module.config.is_encoder_decoder:  # type: ignore[union-attr]
        return "the model is an encoder-decoder"
    if anatomy.dynamically_quantised(module):
        return "dynamically quantised layers make rows depend on their batch"
    if (mask := inputs.get("attention_mask")) is not None and not (isinstance(mask, Tensor) and mask.ndim == 2):  # noqa: PLR2004
        return "the attention mask is not two-dimensional"
    if inputs.get("position_ids") is None and anatomy.rope_owners(module):
        return "this version makes rotary positions inside the forward"
    rows = inputs["input_ids"].shape[0]
    for name, value in inputs.items():
        if name not in PLAIN and isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == rows:
            return f"the decode takes a per-row input this executor does not know ({name})"
    return caches.obstacle([main_cache, *(run.cache for run in runs)])


class BatchedDecode:
    """Decodes main and its branches together, after a prefill of each.

    Args:
        module: The module that decodes.
        main_cache: Main's cache; joined in place with the branches'.
        main_length: Length of main's prompt.
        runs: The branches.
        inputs: Arguments of main's first decode forward.
    """

    def __init__(
        self, module: nn.Module, main_cache: Any, main_length: int, runs: Sequence[BranchRun], inputs: Mapping[str, Any]
    ) -> None:
        self._accepted = frozenset(protocol.forward_parameters(module))
        self._rows = int(inputs["input_ids"].shape[0])
        self._copies = len(runs) + 1
        self._prompt_mask = self._joined_mask(main_length, runs, inputs.get("attention_mask"))
        self._next = [
            protocol.next_position(
                run.prefill_inputs, self._rows, run.length, run.prompt_mask, inputs["input_ids"].device
            )
            for run in runs
        ]
        self.cache = caches.JoinedCache(main_cache, [run.cache for run in runs], self._rows)

    def feed(self, run: Callable[..., Any], inputs: Mapping[str, Any], past: int) -> Any:
        """Run one forward of all rows.

        Args:
            run: The module's own forward.
            inputs: Arguments of main's forward.
            past: Generated tokens already in the cache.

        Returns:
            The forward's output, all rows.
        """
        ids = inputs["input_ids"]
        joined = dict(inputs)
        for name in PER_ROW_IDS:
            if isinstance(inputs.get(name), Tensor):
                joined[name] = inputs[name].repeat(self._copies, 1)
        joined["past_key_values"] = self.cache.joined
        joined["attention_mask"] = self._mask(past + ids.shape[1])
        if "position_ids" in self._accepted:
            joined["position_ids"] = self._positions(inputs.get("position_ids"), past, ids)
        if "cache_position" in inputs:
            start = caches.length_of(self.cache.joined)
            joined["cache_position"] = torch.arange(start, start + ids.shape[1], device=ids.device)
        return run(**joined)

    def reorder(self, index: Tensor) -> None:
        """Follow a reordering of generate's rows; branch positions are equal within a request, masks are too."""
        self.cache.reorder(index)

    def _joined_mask(self, main_length: int, runs: Sequence[BranchRun], main_mask: Tensor | None) -> Tensor | None:
        """Prompt masks of all rows `[rows * copies, longest prompt]`, or None when nothing is masked."""
        lengths = [main_length, *(run.length for run in runs)]
        masks = [None if main_mask is None else main_mask[:, :main_length], *(run.prompt_mask for run in runs)]
        if all(mask is None for mask in masks) and len(set(lengths)) == 1:
            return None
        device = next((mask.device for mask in masks if mask is not None), runs[0].cache.layers[0].keys.device)
        joined = torch.zeros(self._copies, self._rows, max(lengths), dtype=torch.long, device=device)
        for index, (mask, length) in enumerate(zip(masks, lengths, strict=True)):
            joined[index, :, max(lengths) - length :] = 1 if mask is None else mask
        return joined.flatten(0, 1)

    def _mask(self, tokens: int) -> Tensor | None:
        if self._prompt_mask is None:
            return None
        return torch.nn.functional.pad(self._prompt_mask, (0, tokens), value=1)

    def _positions(self, mains: Tensor | None, past: int, ids: Tensor) -> Tensor:
        new = torch.arange(ids.shape[1], device=ids.device)
        branches = [following.to(ids.device) + (past + new) for following in self._next]
        if mains is None:
            mains = self._main_positions(past, new)
        main = mains.expand(*mains.shape[:-2], self._rows, mains.shape[-1])
        return torch.cat([main, *branches], dim=-2)

    def _main_positions(self, past: int, new: Tensor) -> Tensor:
        mask = self._prompt_mask
        if mask is None:
            start = torch.full((self._rows, 1), caches.length_of(self.cache.joined) - past, device=new.device)
        else:
            start = mask[: self._rows].sum(-1, keepdim=True)
        return start + past + new
