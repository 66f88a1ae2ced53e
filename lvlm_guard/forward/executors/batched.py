"""Main and all branches as rows of one batch: one forward per token where that is exact."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.utils import ModelOutput

from lvlm_guard.cache_names import CACHE_NAMES, name_of_cache
from lvlm_guard.errors import ModeRefused
from lvlm_guard.forward import caches, model_inputs
from lvlm_guard.forward.executors.branch_run import BranchRun
from lvlm_guard.forward.executors.executor import Inputs, Run
from lvlm_guard.forward.executors.first_step import FirstStep
from lvlm_guard.forward.layouts import DecodeLayouts
from lvlm_guard.forward.steps import Step, StepLogits
from lvlm_guard.strategy.branches import MAIN

PER_ROW_IDS = ("input_ids", *model_inputs.TOKEN_TYPES)


class BatchedExecutor:
    """Decodes main and its branches together, after a prefill of each.

    Args:
        first: The first step after the prefill; the branches' caches are joined to main's in place.
        layouts: The layouts of the prompts.
    """

    def __init__(self, first: FirstStep, layouts: DecodeLayouts) -> None:
        assert first.cache is not None
        runs = list(first.branches.values())
        self._module = first.main.module
        self._main_cache = first.cache
        self._is_static = caches.is_static(first.cache)
        self._static_mask = caches.OpeningMask()
        self._keys = [MAIN, *first.branches]
        self._layouts = layouts
        self._rows = first.rows
        self._first_past = first.step.past
        self._main_positions = first.inputs.get("position_ids")
        self._first_positions = [inputs.get("position_ids") for inputs in first.branch_inputs.values()]
        self._are_positions_checked = False
        self._prompt_mask = self._join_masks(first, runs)
        self.cache = caches.join(first.cache, [run.cache for run in runs], self._rows)
        for run in runs:
            run.release()

    def run(self, forward: Run, inputs: Inputs, step: Step) -> StepLogits:
        """Run one step: every row in one forward, then main's rows apart from the branches'."""
        running = self._layouts.lay_out(self._keys, step.new)
        with running.active():
            output = forward(**self._join_inputs(inputs, step))
        self.cache.advance(step.new)
        main, *branches = output.logits[:, -step.new :].split(self._rows)
        readouts = self._layouts.read(running, main, step.keep)
        output = self._cut_to_main(output, step.new)
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
        joined[name_of_cache(inputs)] = self.cache.joined
        joined["attention_mask"] = self._mask(step.past + step.new)
        if isinstance(inputs.get("position_ids"), Tensor):
            joined["position_ids"] = self._positions(inputs["position_ids"], step)
        if "cache_position" in inputs:
            start = self.cache.length
            joined["cache_position"] = torch.arange(start, start + step.new, device=inputs["input_ids"].device)
        if self._is_static:
            joined["attention_mask"] = self._expand_mask(joined, step.new)
        return joined

    def _join_masks(self, first: FirstStep, runs: Sequence[BranchRun]) -> Tensor | None:
        """Prompt masks of all rows `[rows * copies, longest prompt]`, or None when nothing is masked."""
        lengths = [first.main.length, *(run.length for run in runs)]
        masks = [first.main_mask, *(run.prompt_mask for run in runs)]
        if all(mask is None for mask in masks) and len(set(lengths)) == 1:
            return None
        device = next((mask.device for mask in masks if mask is not None), first.inputs["input_ids"].device)
        joined = torch.zeros(len(lengths), self._rows, max(lengths), dtype=torch.long, device=device)
        for index, (mask, length) in enumerate(zip(masks, lengths, strict=True)):
            joined[index, :, max(lengths) - length :] = 1 if mask is None else mask
        return joined.flatten(0, 1)

    def _mask(self, tokens: int) -> Tensor | None:
        """Attention mask of all rows over the prompt and `tokens` generated tokens."""
        return None if self._prompt_mask is None else pad(self._prompt_mask, (0, tokens), value=1)

    def _expand_mask(self, joined: Inputs, new: int) -> Any:
        """The mask that a static cache of all rows needs."""
        past = self.cache.length
        expand = functools.partial(model_inputs.expand_mask, self._module, joined, past=past)
        return self._static_mask.find(expand, past, new)

    def _positions(self, main: Tensor, step: Step) -> Tensor:
        """Position ids of all rows.

        Prompts are right-aligned in the joined cache, but every row counts its own tokens: a branch goes on from the
        position that the model's own code gave its first decoded token, wherever the padding put it.
        """
        steps = step.past - self._first_past
        new = torch.arange(steps, steps + step.new, device=main.device)
        if steps and not self._are_positions_checked:
            self._check_steps(main, new)
        branches = [first[..., :1].to(main.device) + new for first in self._first_positions if first is not None]
        rows = [positions.expand(*positions.shape[:-2], self._rows, step.new) for positions in (main, *branches)]
        return torch.cat(rows, dim=-2)

    def _check_steps(self, main: Tensor, new: Tensor) -> None:
        """Check once, at the second step, that main's own positions go on token by token as the branches' are made to.

        Raises:
            ModeRefused: They do not.
        """
        self._are_positions_checked = True
        assert self._main_positions is not None
        if not torch.equal((self._main_positions[..., :1] + new).expand_as(main), main):
            raise ModeRefused(
                "The position ids of this model do not go up by 1 with every token, so its branches cannot be decoded in one "
                "batch. Choose executor='sequential'."
            )

    def _cut_to_main(self, output: ModelOutput, new: int) -> ModelOutput:
        """Main's share of a joined forward that ran `new` positions, as main's own forward would have returned it."""
        for name, value in list(output.items()):
            if name in CACHE_NAMES:
                output[name] = self._main_cache
            elif name == "attentions":
                output[name] = _map_tensors(value, lambda part: self.cache.cut_keys(self._first_rows(part), new))
            else:
                output[name] = _map_tensors(value, self._first_rows)
        return output

    def _first_rows(self, value: Tensor) -> Tensor:
        """Main's part of a tensor whose first dimension is all rows, or all positions of all rows."""
        is_whole = value.ndim == 0 or value.shape[0] % (self._rows * len(self._keys))
        return value if is_whole else value[: value.shape[0] // len(self._keys)]


def _map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    return type(value)(_map_tensors(item, change) for item in value) if isinstance(value, (tuple, list)) else value
