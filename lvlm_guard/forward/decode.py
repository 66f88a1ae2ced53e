"""One guarded decode: which forward calls belong to it, and what each of them answers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from lvlm_guard.cache_names import find_cache
from lvlm_guard.errors import ModelRefused, ModeRefused
from lvlm_guard.forward import caches, model_inputs
from lvlm_guard.forward.compilation import compile_forward, compiles_by_itself
from lvlm_guard.forward.executors.batch_obstacles import BatchScope
from lvlm_guard.forward.executors.choosing import Choice, choose_by_name, choose_executor
from lvlm_guard.forward.executors.executor import ExecutorName, Inputs, Run
from lvlm_guard.forward.executors.sequential import SequentialExecutor
from lvlm_guard.forward.installations import leave, stand_in
from lvlm_guard.forward.interventions.compiled import is_compiled
from lvlm_guard.forward.interventions.layers import LayerInterventions
from lvlm_guard.forward.kept_prompts import KeptPrompt, keep_prompt
from lvlm_guard.forward.layouts import DecodeLayouts
from lvlm_guard.forward.preparation import PreparedDecode
from lvlm_guard.forward.steps import Step, StepLogits, TokenHistory
from lvlm_guard.outputs import measure_prompt
from lvlm_guard.protocols import Cache, Model
from lvlm_guard.strategy.branches import MAIN
from lvlm_guard.strategy.forward import Forward
from lvlm_guard.strategy.generation import Generation


@dataclass(frozen=True)
class Counts:
    """What one guarded decode ran.

    Args:
        prefill: Forwards of the prefill, main's included.
        decode: Forwards after the prefill.
        steps: Calls of generate after the prefill.
        positions: Token positions that generate received logits for.
    """

    prefill: int = 0
    decode: int = 0
    steps: int = 0
    positions: int = 0

    def add(self, step: Step, logits: StepLogits) -> Counts:
        """Count one more step."""
        positions = step.first_position + min(step.keep, logits.main.shape[1])
        if step.is_prefill:
            return Counts(self.prefill + logits.forwards, self.decode, self.steps, positions)
        return Counts(self.prefill, self.decode + logits.forwards, self.steps + 1, positions)


class GuardedDecode:
    """One guarded decode, claimed by the forward calls that carry its own main cache.

    Args:
        main: Main as generate prepared it; tells the module and the length of the prompt.
        branches: Prepared branches by key.
        gen: The generation that strategies see.
        combine: Turns a `Forward` into the logits generate receives, or None to leave main's as they are.
        executor: What the user asked for.
        interventions: Edits, captures and readouts inside the layers.
        late: Prepares the branches that are built from main's prefill.
        main_cache: Main's cache, where another module's calls may come before main's first.
        scope: What a batch of main and branches has to do with, beside its forwards.
        keeps_prompts: Whether what the prefill leaves is kept, so that others can go on from it.

    Attributes:
        kept_prompts: What it left of main and of branches, or why nothing can go on from it; empty where it is not kept.
    """

    def __init__(
        self,
        main: PreparedDecode,
        branches: Mapping[Hashable, PreparedDecode],
        gen: Generation,
        combine: Callable[[Generation], Tensor | None],
        executor: ExecutorName = "auto",
        interventions: LayerInterventions | None = None,
        late: Mapping[Hashable, Callable[[], PreparedDecode]] | None = None,
        main_cache: Cache | None = None,
        scope: BatchScope | None = None,
        *,
        keeps_prompts: bool = False,
    ) -> None:
        self.main = main
        self.counts = Counts()
        self.kept_prompts: Mapping[Hashable, KeptPrompt | str] = {}
        self._keeps_prompts = keeps_prompts
        self._gen = gen
        self._combine = combine
        self._executor_name: ExecutorName = executor
        self._scope = scope or BatchScope()
        self._interventions = interventions
        self._cache = main_cache
        self._former_cache: Cache | None = None
        self._passed_over = False
        self._cached = bool(main.settings.use_cache is not False)
        self._ids_name = model_inputs.name_of_ids(main.module)
        self._history = TokenHistory(main, cached=self._cached)
        self._layouts = DecodeLayouts(main, gen, self._history, interventions)
        prepare_late = functools.partial(
            _prepare_late, gen, self._history, late or {}
        )  # a method would keep caches in a cycle
        self._sequential = SequentialExecutor(
            main, branches, self._history, self._layouts, prepare_late, cached=self._cached
        )
        has_branches = bool(branches or late)
        self.choice = choose_by_name(self._sequential, executor, branches=has_branches, cached=self._cached)
        self._is_prefilled = False
        self.compiles_forward = compiles_by_itself(main)
        """Whether this decode compiles the forward that generate would have compiled the call of."""
        self._compiled: Run | None = None
        self._is_closed = False
        self._undo = ExitStack()

    @property
    def module(self) -> Model:
        """The module that decodes."""
        return self.main.module

    def claims(self, module: Any, inputs: Inputs) -> bool:
        """Whether a forward call belongs to this decode: the module, and the cache that its first call carried."""
        if module is not self.module:
            return False
        if not self._is_prefilled and self._cache is None:
            return True
        cache = find_cache(inputs)
        is_mine = cache is self._cache or (cache is not None and cache is self._former_cache)
        is_claimed = is_mine and (self._cached or self._continues_prompt(inputs))
        self._passed_over |= not is_claimed
        return is_claimed

    def step(self, forward: Run, inputs: Inputs) -> ModelOutput:
        """Answer one forward call of generate: run main and branches, add the terms, hand main's rows back."""
        step = self._next_step(inputs)
        executor = self._choose(forward, inputs, step).executor
        rows = self._list_rows() if step.is_prefill and self._keeps_prompts else None
        logits = executor.run(forward if step.is_prefill else self._compile(forward), inputs, step)
        self._follow_cache(step, find_cache(logits.output))
        if rows is not None:
            self.kept_prompts = self._keep_prompts(rows)
        self.counts = self.counts.add(step, logits)
        self._gen.rows.crop(step.first_position)
        self._gen.forward = logits.as_forward(step, self._history.tokens)
        return logits.answer(self._combine(self._gen))

    def find_answers(self, output: Tensor, prompts: Tensor) -> int:
        """Return where in the rows of an output `[rows, length]` the answers begin: behind a prompt, or at 0 where it holds none.

        Args:
            output: What generate returned. It begins with the prompt of its loop, which is the decoder's own for an
                encoder-decoder and nothing for a decode from embeddings, with the prompt that was asked, or with the answer.
            prompts: Prompts of the call `[requests, length]`.

        Raises:
            ModeRefused: Not every token was chosen from logits of this decode: somebody replaced the module's forward while the
                call ran, or it was called with a strange cache.
            ModelRefused: The output holds more than the answer and begins with no known prompt.
        """
        of_loop = self.main.input_ids[:: self.main.rows_per_request]
        start = measure_prompt(output, (of_loop, prompts))
        self._check_whole(output.shape[1] - (start or 0), is_prompt_known=start is not None)
        return start or 0

    def _check_whole(self, tokens: int, *, is_prompt_known: bool) -> None:
        name = type(self.module).__name__
        if self._passed_over and not self.counts.steps and tokens > 1:
            raise ModeRefused(
                f"{name} decoded with another cache than its prefill was run with, so its tokens were not guarded. Pass "
                "use_cache=False."
            )
        if tokens > self.counts.positions and not is_prompt_known:
            raise ModelRefused(
                f"generate returned {tokens} tokens a row where {self.counts.positions} were decoded on {name}, and they begin neither "
                "with the prompt nor with an answer, so nothing tells which are the answer. Pass the model inside."
            )
        if tokens > self.counts.positions:
            raise ModeRefused(
                f"The forward of {name} was replaced while the call ran, so {tokens - self.counts.positions} of its tokens were "
                "not guarded. Change the model between calls."
            )

    def close(self) -> None:
        """Leave main's cache as plain generate would have."""
        self._undo.close()
        if not self._is_closed:
            self._is_closed = True
            self.choice.executor.release()
        self._leave_cache()

    def _next_step(self, inputs: Inputs) -> Step:
        """The tokens that this call feeds; the first call also tells which cache is main's."""
        if self._is_prefilled:
            if find_cache(inputs) is not self._cache:
                self._adopt(find_cache(inputs))
            return self._history.advance(inputs.get(self._ids_name), self._cache)
        self._is_prefilled = True
        self._adopt(find_cache(inputs))
        return self._history.begin(inputs.get(self._ids_name))

    def _adopt(self, cache: Cache | None) -> None:
        """Take the cache of a call as main's, and follow its beams."""
        self._leave_cache()
        self._former_cache, self._cache = self._cache, cache
        self._sequential.adopt(cache)
        if hasattr(cache, "reorder_cache"):
            stand_in(cache, "reorder_cache", lambda _, index: self._reorder(index), self)

    def _leave_cache(self) -> None:
        if hasattr(self._cache, "reorder_cache"):
            leave(self._cache, "reorder_cache", self)

    def _follow_cache(self, step: Step, returned: Cache | None) -> None:
        """Go on with the cache that a forward returned: some wrap the one they get; the first ones must show what was run."""
        if self._cached and returned is not None and returned is not self._cache:
            self._adopt(returned)
        if step.is_prefill:
            self._history.measure(self._cache)
        elif self.counts.steps == 0:
            self._history.check_cache(self._cache)

    def _list_rows(self) -> dict[str, Tensor]:
        return {name: self._gen.rows[name] for name in self._gen.rows}

    def _keep_prompts(self, rows: Mapping[str, Tensor]) -> dict[Hashable, KeptPrompt | str]:
        """Keep what the prefill left, nothing where edits kept something of whole prompts beside the `rows` before it."""
        if any(tensor is not rows.get(name) for name, tensor in self._list_rows().items()):
            return {}
        main = keep_prompt(self.main, self._cache, self._history.length)
        branches = {key: run.keep_prompt(self._history.length) for key, run in self._sequential.branches.items()}
        return {MAIN: main, **branches}

    def _choose(self, forward: Run, inputs: Inputs, step: Step) -> Choice:
        """The executor of this step; settled, with caches that grow in place, at the first step after the prefill."""
        if step.is_prefill:
            return Choice(self._sequential, self.choice.name, self.choice.reason)
        if self._interventions is not None:
            self._interventions.effects.read_when_due(self.counts.steps + 1)
        if self.counts.steps == 0:
            if self._sequential.branches and self.choice.name == "none":
                self.choice = choose_executor(
                    self._sequential, self._executor_name, forward, self._layouts, inputs, step, self._scope
                )
            self._grow_in_place()
        return self.choice

    def _compile(self, forward: Run) -> Run:
        """The forward that decodes, compiled where generate would have compiled it; settled at the first step after the prefill."""
        if self.compiles_forward and self._compiled is None:
            self._compiled = compile_forward(self.main, forward)
        return forward if self._compiled is None else self._compiled

    def _grow_in_place(self) -> None:
        """Let the caches that are decoded with grow in place; a compiled model has graphs of how they grow."""
        if not is_compiled(self.module):
            for cache in (self._cache, *(branch.cache for branch in self._sequential.branches.values())):
                self._undo.callback(caches.grow_in_place(cache))

    def _continues_prompt(self, inputs: Inputs) -> bool:
        """Whether ids begin with main's prompt; without a cache nothing else tells main's calls."""
        ids, prompt = inputs.get(self._ids_name), self.main.input_ids
        if not isinstance(ids, Tensor) or ids.shape[0] != prompt.shape[0] or ids.shape[1] < prompt.shape[1]:
            return False
        return torch.equal(ids[:, : prompt.shape[1]], prompt)

    def _reorder(self, index: Tensor) -> None:
        """Follow beams, or a search that takes the rows of one prompt apart."""
        if len(index) != self._layouts.rows:
            self._repeat_rows(index, len(index) // self._layouts.rows)
        self.choice.executor.reorder(index)
        self._history.select(index)
        self._gen.rows.select(index)

    def _repeat_rows(self, index: Tensor, times: int) -> None:
        """Go on with every row repeated: a search ran its prompts once and now takes them apart."""
        self._sequential.repeat(times)
        self._layouts.select(index)
        self._gen.multiply_rows(times)
        self._gen.observations = {
            key: value.index_select(0, index.to(value.device)) for key, value in self._gen.observations.items()
        }
        if self._gen.forward is not None:
            self._gen.forward = self._gen.forward.select(index)


def _prepare_late(
    gen: Generation, history: TokenHistory, late: Mapping[Hashable, Callable[[], PreparedDecode]], logits: Tensor
) -> dict[Hashable, PreparedDecode]:
    """Prepare the branches that are built from main's prefill."""
    gen.forward = Forward(logits[:, -1:], {}, 0, tokens=history.tokens)
    return {key: prepare() for key, prepare in late.items()}
