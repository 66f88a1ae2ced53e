"""Main and all branches as rows of one batch: one forward per token where that is exact."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.utils import ModelOutput

from lvlm_guard import anatomy
from lvlm_guard.forward import caches, model_inputs
from lvlm_guard.forward.executors.branch_run import BranchRun
from lvlm_guard.forward.executors.executor import Inputs, Run
from lvlm_guard.forward.layouts import DecodeLayouts
from lvlm_guard.forward.preparation import PreparedDecode
from lvlm_guard.forward.steps import Step, StepLogits
from lvlm_guard.protocols import Cache, Model
from lvlm_guard.strategy.branches import MAIN

PER_ROW_IDS = ("input_ids", *model_inputs.ALIGNED_LAST[2:])
PIXEL_SIZES = ("image_grid_thw", "video_grid_thw", "image_sizes", "second_per_grid_ts")  # unused without pixels
KNOWN_INPUTS = frozenset(
    {"past_key_values", "attention_mask", "position_ids", "cache_position", *PER_ROW_IDS, *PIXEL_SIZES}
)


def find_obstacle(module: Model, all_caches: Sequence[Cache | None], inputs: Mapping[str, Any]) -> str | None:
    """Why decoding as one batch would not be exact, or None when it is.

    Args:
        module: The module that decodes.
        all_caches: The caches of main and of the branches, prefilled and synchronised.
        inputs: Arguments of main's first decode forward.
    """
    if module.config.is_encoder_decoder:
        return "the model is an encoder-decoder"
    if anatomy.dynamically_quantised(module):
        return "dynamically quantised layers make rows depend on their batch"
    if (mask := inputs.get("attention_mask")) is not None and not (isinstance(mask, Tensor) and mask.ndim == 2):  # noqa: PLR2004
        return "the attention mask is not two-dimensional"
    if inputs.get("position_ids") is None and anatomy.rope_owners(module):
        return "this version makes rotary positions inside the forward"
    rows = inputs["input_ids"].shape[0]
    for name, value in inputs.items():
        if name not in KNOWN_INPUTS and isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == rows:
            return f"the decode takes a per-row input this executor does not know ({name})"
    return caches.obstacle(all_caches)


class BatchedExecutor:
    """Decodes main and its branches together, after a prefill of each.

    Args:
        main: Main as generate prepared it.
        cache: Main's cache; the branches' are joined to it in place.
        branches: The branches by key, prefilled and synchronised.
        layouts: The layouts of the prompts.
        inputs: Arguments of main's first decode forward.
    """

    def __init__(
        self,
        main: PreparedDecode,
        cache: Cache,
        branches: Mapping[Hashable, BranchRun],
        layouts: DecodeLayouts,
        inputs: Inputs,
    ) -> None:
        runs = list(branches.values())
        self.cache = caches.JoinedCache(cache, [run.cache for run in runs], int(inputs["input_ids"].shape[0]))
        self._main_cache = cache
        self._keys = [MAIN, *branches]
        self._layouts = layouts
        self._rows = int(inputs["input_ids"].shape[0])
        self._takes_positions = "position_ids" in model_inputs.list_parameters(main.module)
        self._prompt_mask = self._join_masks(main.length, runs, inputs)
        self._next_positions = [
            model_inputs.find_next_position(
                run.prefill_inputs, self._rows, run.length, run.prompt_mask, inputs["input_ids"].device
            )
            for run in runs
        ]
        for run in runs:
            run.release()

    def run(self, forward: Run, inputs: Inputs, step: Step) -> StepLogits:
        """Run one step: every row in one forward, then main's rows apart from the branches'."""
        running = self._layouts.lay_out(self._keys, step.new)
        with running.active():
            output = forward(**self._join_inputs(inputs, step))
        main, *branches = output.logits[:, -step.new :].split(self._rows)
        readouts = self._layouts.read(running, main, step.keep)
        output = cut_to_main(output, self._rows, self._main_cache)
        return StepLogits(output, main, dict(zip(self._keys[1:], branches, strict=True)), readouts, forwards=1)

    def reorder(self, index: Tensor) -> None:
        """Follow a reordering of generate's rows; branch positions are equal within a request, masks are too."""
        self.cache.reorder(index)

    def release(self) -> None:
        """Leave main's rows alone in main's cache."""
        self.cache.release()

    def _join_inputs(self, inputs: Inputs, step: Step) -> Inputs:
        """Main's inputs repeated for every branch, with masks and positions of each."""
        joined = dict(inputs)
        for name in PER_ROW_IDS:
            if isinstance(inputs.get(name), Tensor):
                joined[name] = inputs[name].repeat(len(self._keys), 1)
        joined["past_key_values"] = self.cache.joined
        joined["attention_mask"] = self._mask(step.past + step.new)
        if self._takes_positions:
            joined["position_ids"] = self._positions(inputs.get("position_ids"), step, inputs["input_ids"].device)
        if "cache_position" in inputs:
            start = caches.length_of(self.cache.joined)
            joined["cache_position"] = torch.arange(start, start + step.new, device=inputs["input_ids"].device)
        return joined

    def _join_masks(self, main_length: int, runs: Sequence[BranchRun], inputs: Inputs) -> Tensor | None:
        """Prompt masks of all rows `[rows * copies, longest prompt]`, or None when nothing is masked."""
        main_mask = inputs.get("attention_mask")
        lengths = [main_length, *(run.length for run in runs)]
        masks = [None if main_mask is None else main_mask[:, :main_length], *(run.prompt_mask for run in runs)]
        if all(mask is None for mask in masks) and len(set(lengths)) == 1:
            return None
        device = next((mask.device for mask in masks if mask is not None), inputs["input_ids"].device)
        joined = torch.zeros(len(lengths), self._rows, max(lengths), dtype=torch.long, device=device)
        for index, (mask, length) in enumerate(zip(masks, lengths, strict=True)):
            joined[index, :, max(lengths) - length :] = 1 if mask is None else mask
        return joined.flatten(0, 1)

    def _mask(self, tokens: int) -> Tensor | None:
        """Attention mask of all rows over the prompt and `tokens` generated tokens."""
        return None if self._prompt_mask is None else pad(self._prompt_mask, (0, tokens), value=1)

    def _positions(self, main: Tensor | None, step: Step, device: torch.device) -> Tensor:
        """Position ids of all rows.

        Prompts are right-aligned in the joined cache, but every row counts its own tokens: a branch goes on from the
        position that followed its own prefill, wherever the padding put it.
        """
        new = torch.arange(step.new, device=device)
        branches = [following.to(device) + (step.past + new) for following in self._next_positions]
        if main is None:
            main = self._main_positions(step, new)
        main = main.expand(*main.shape[:-2], self._rows, main.shape[-1])
        return torch.cat([main, *branches], dim=-2)

    def _main_positions(self, step: Step, new: Tensor) -> Tensor:
        """Main's positions where generate passes none: as many as its rows have tokens."""
        if self._prompt_mask is None:
            start = torch.full((self._rows, 1), caches.length_of(self.cache.joined) - step.past, device=new.device)
        else:
            start = self._prompt_mask[: self._rows].sum(-1, keepdim=True)
        return start + step.past + new


def cut_to_main(output: ModelOutput, rows: int, cache: Cache) -> ModelOutput:
    """Main's share of a joined forward, as main's own forward would have returned it."""
    for name, value in list(output.items()):
        output[name] = cache if name == "past_key_values" else _first_rows(value, rows)
    return output


def _first_rows(value: Any, rows: int) -> Any:
    if isinstance(value, Tensor):
        return value[:rows] if value.ndim else value
    return tuple(_first_rows(item, rows) for item in value) if isinstance(value, tuple) else value
