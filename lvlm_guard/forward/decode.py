"""One guarded decode: which forwards belong to it, what runs beside them, and what goes back to generate."""

from __future__ import annotations

import types
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from lvlm_guard.errors import ModeRefused
from lvlm_guard.forward import batched, caches, protocol
from lvlm_guard.forward.batched import BatchedDecode
from lvlm_guard.forward.caches.growing import grow_in_place
from lvlm_guard.forward.interventions.compiled import is_compiled
from lvlm_guard.forward.interventions.inside import Inside
from lvlm_guard.forward.interventions.passes import Pass, Prompt, during
from lvlm_guard.forward.protocol import Prepared
from lvlm_guard.forward.sequential import BranchRun
from lvlm_guard.strategy.branches import MAIN
from lvlm_guard.strategy.generation import Forward, Generation

ExecutorName = Literal["auto", "batched", "sequential"]
Run = Callable[..., Any]


@dataclass
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


@dataclass
class Scope:
    """State of one guarded decode, claimed by the forward calls that carry its own main cache.

    Args:
        main: Main as generate prepared it; tells the module and the length of the prompt.
        branches: Prepared branches by key.
        gen: The travelling object.
        combine: Turns a `Forward` into the logits generate receives, or None to leave main's as they are.
        executor: What the user asked for.
        inside: Edits, probes and readouts inside the layers.
        late: Branches that are prepared once main's prefill has run.
    """

    main: Prepared
    branches: Mapping[Hashable, Prepared]
    gen: Generation
    combine: Callable[[Generation], Tensor | None]
    executor: ExecutorName = "auto"
    inside: Inside | None = None
    late: Mapping[Hashable, Callable[[], Prepared]] = field(default_factory=dict)
    main_cache: Any = None
    used: str = "none"
    reason: str = ""
    counts: Counts = field(default_factory=Counts)

    def __post_init__(self) -> None:
        self.module: nn.Module = self.main.module
        self._ids_name = protocol.ids_name(self.module)
        self._cached = bool(self.main.settings.use_cache is not False)
        self._runs = {key: BranchRun(prepared) for key, prepared in self.branches.items()}
        self._prompts: dict[Hashable, Prompt] = {MAIN: self._prompt(self.main)}
        self._prompts.update({key: self._prompt(prepared) for key, prepared in self.branches.items()})
        self._generated = torch.empty(0, 0, dtype=torch.long, device=self.main.input_ids.device)
        self._decoder: BatchedDecode | None = None
        self._started = False
        self._readouts: dict[tuple[int, bool], Tensor] = {}
        self._undo = ExitStack()
        self._refuse_by_name()

    def _refuse_by_name(self) -> None:
        if self.executor == "batched" and not self._cached:
            raise ModeRefused(
                "The batched executor needs a cache: drop use_cache=False or choose executor='sequential'."
            )
        if not self.branches and not self.late:
            self.used, self.reason = "none", "no branch to run"
        elif self.executor == "sequential":
            self.used, self.reason = "sequential", "asked for"

    def claims(self, module: nn.Module, inputs: Mapping[str, Any]) -> bool:
        """Whether a forward call belongs to this decode: the module, and the cache that its first call carried."""
        if module is not self.module:
            return False
        if not self._started and self.main_cache is None:
            return True
        return inputs.get("past_key_values") is self.main_cache and (self._cached or self._continues_prompt(inputs))

    def _continues_prompt(self, inputs: Mapping[str, Any]) -> bool:
        """Without a cache, main's calls are known by the prompt they begin with."""
        ids, prompt = inputs.get(self._ids_name), self.main.input_ids
        if not isinstance(ids, Tensor) or ids.shape[0] != prompt.shape[0] or ids.shape[1] < prompt.shape[1]:
            return False
        return torch.equal(ids[:, : prompt.shape[1]], prompt)

    def run(self, forward: Run, inputs: dict[str, Any]) -> Any:
        """Answer one forward call of generate with main's rows of combined logits."""
        if not self._started:
            return self._prefill(forward, inputs)
        return self._decode(forward, inputs)

    def close(self) -> None:
        """Leave main's cache as plain generate would have."""
        self._undo.close()
        if self._decoder is not None:
            self._decoder.cache.release()
        if self.main_cache is not None:
            vars(self.main_cache).pop("reorder_cache", None)

    def _prompt(self, prepared: Prepared) -> Prompt:
        """Where the image and the padding of a prompt are."""
        ids, length = prepared.input_ids, prepared.length
        rows = int(prepared.kwargs["inputs_embeds"].shape[0]) if "inputs_embeds" in prepared.kwargs else ids.shape[0]
        image = torch.zeros(rows, length, dtype=torch.bool, device=ids.device)
        given = self.gen.image_mask.repeat_interleave(rows // max(self.gen.image_mask.shape[0], 1), dim=0)
        if ids.shape[1] == length and self.gen.image_token is not None:
            image = ids == self.gen.image_token
        elif given.shape == image.shape:
            image = given
        mask = prepared.kwargs.get("attention_mask")
        if not isinstance(mask, Tensor) or mask.shape != image.shape:
            mask = torch.ones_like(image)
        return Prompt(image, mask.bool())

    def _pass(self, keys: Sequence[Hashable], new: int) -> Pass:
        """The forward about to run: the rows it holds, and how many new positions of the longest prompt."""
        prompts = {key: self._prompts[key] for key in keys}
        return Pass(self.gen, prompts, self._generated.shape[1], new, self.inside)

    def _main_forward(self, forward: Run, inputs: dict[str, Any], new: int, keep: int) -> Any:
        now = self._pass([MAIN], new)
        with during(now):
            output = forward(**inputs)
        self._read(now, output.logits, keep)
        return output

    def _read(self, now: Pass, logits: Tensor, keep: int) -> None:
        self._readouts = {} if self.inside is None else self.inside.read(now, logits, min(keep, logits.shape[1]))

    def _feed(self, forward: Run, new: int, keep: int, *, first: bool = False) -> dict[Hashable, Tensor]:
        """Run every branch by itself over the last `new` generated tokens."""
        logits = {}
        for key, run in self._runs.items():
            whole = first or not self._cached
            now = self._pass([key], run.length + self._generated.shape[1] if whole else new)
            with during(now):
                logits[key] = run.feed(forward, self._generated, new, keep, first=first)
        return logits

    def _prefill(self, forward: Run, inputs: dict[str, Any]) -> Any:
        self._adopt(inputs.get("past_key_values"))
        ids, prompt = inputs.get(self._ids_name), self.main.input_ids
        self._generated = (prompt if ids is None else ids)[:, prompt.shape[1] :]
        new = self._generated.shape[1]
        output = self._main_forward(forward, inputs, self.main.length + new, new + 1)
        self._prepare_late(output.logits)
        logits = self._feed(forward, new, new + 1, first=True)
        self.counts.prefill += 1 + len(self._runs)
        return self._answer(output, output.logits, logits, new + 1, first_position=0)

    def _prepare_late(self, logits: Tensor) -> None:
        """Prepare the branches that are built from main's prefill."""
        self.gen.forward = Forward(logits[:, -1:], {}, 0)
        for key, prepare in self.late.items():
            prepared = prepare()
            self._runs[key] = BranchRun(prepared)
            self._prompts[key] = self._prompt(prepared)
            if self.main_cache is not None:
                caches.record_past_like(self._runs[key].cache, self.main_cache)

    def _decode(self, forward: Run, inputs: dict[str, Any]) -> Any:
        ids = inputs[self._ids_name]
        past, new = self._advance(ids)
        self.counts.steps += 1
        if self.inside is not None:
            self.inside.touched.look(self.counts.steps)
        if self._runs and self.used == "none":
            self._choose(inputs, past)
        if self.counts.steps == 1:
            self._grow_in_place()
        if self._decoder is not None:
            return self._decode_batched(forward, inputs, past, new)
        self.counts.decode += 1 + len(self._runs)
        output = self._main_forward(forward, inputs, int(ids.shape[1]), self._keep(new))
        logits = self._feed(forward, new, self._keep(new))
        return self._answer(output, output.logits, logits, self._keep(new), first_position=self._first(past))

    def _decode_batched(self, forward: Run, inputs: dict[str, Any], past: int, new: int) -> Any:
        assert self._decoder is not None
        self.counts.decode += 1
        now = self._pass([MAIN, *self._runs], new)
        with during(now):
            output = self._decoder.feed(forward, inputs, past)
        rows = inputs[self._ids_name].shape[0]
        main, *others = output.logits[:, -new:].split(rows)
        self._read(now, main, new)
        output = _main_rows(output, rows, self.main_cache)
        logits = dict(zip(self._runs, others, strict=True))
        return self._answer(output, main, logits, new, first_position=past + 1)

    def _keep(self, new: int) -> int:
        return new if self._cached else 1

    def _first(self, past: int) -> int:
        return past + 1 if self._cached else self._generated.shape[1]

    def _adopt(self, cache: Any) -> None:
        """Take the cache of the first call as main's, and follow its beams."""
        self._started = True
        self.main_cache = cache
        if cache is None or not hasattr(cache, "reorder_cache"):
            return
        cache.reorder_cache = types.MethodType(lambda _, index: self._reorder(index), cache)
        for run in self._runs.values():
            caches.record_past_like(run.cache, cache)

    def _advance(self, ids: Tensor) -> tuple[int, int]:
        """Bring the generated tokens up to date; how many were cached before this call, and how many are new."""
        if not self._cached:
            before = self._generated.shape[1]
            self._generated = ids[:, self.main.input_ids.shape[1] :]
            return before, self._generated.shape[1] - before
        past = caches.length_of(self.main_cache) - self.main.length
        kept = self._generated.to(ids.device)[:, :past] if self._generated.numel() else ids[:, :0]
        self._generated = torch.cat([kept, ids], dim=1)
        return past, int(ids.shape[1])

    def _choose(self, inputs: Mapping[str, Any], past: int) -> None:
        """Settle the executor at the first decode, when the caches exist and the inputs are known."""
        for run in self._runs.values():
            run.synchronise(past)
        obstacle = (
            batched.obstacle(self.module, self.main_cache, list(self._runs.values()), inputs)
            if self._cached
            else "there is no cache (use_cache=False)"
        )
        if obstacle and self.executor == "batched":
            raise ModeRefused(f"The batched executor would not be exact here: {obstacle}. Choose executor='auto'.")
        if obstacle:
            self.used, self.reason = "sequential", obstacle
            return
        self.used, self.reason = "batched", "exact here" if self.executor == "auto" else "asked for"
        runs = list(self._runs.values())
        self._decoder = BatchedDecode(self.module, self.main_cache, self.main.length, runs, inputs)
        for run in runs:
            run.release()

    def _grow_in_place(self) -> None:
        """Let the caches that are decoded with grow in place; a compiled model has graphs of how they grow."""
        if not is_compiled(self.module):
            for cache in (self.main_cache, *(run.cache for run in self._runs.values())):
                self._undo.callback(grow_in_place(cache))

    def _reorder(self, index: Tensor) -> None:
        rows = self._prompts[MAIN].image.shape[0]
        if len(index) != rows:
            self._repeat(index, len(index) // rows)
        if self._decoder is not None:
            self._decoder.reorder(index)
        else:
            type(self.main_cache).reorder_cache(self.main_cache, index)
            for run in self._runs.values():
                run.reorder(index)
        self._generated = self._generated.index_select(0, index.to(self._generated.device))
        self.gen.rows.select(index)

    def _repeat(self, index: Tensor, times: int) -> None:
        """Go on with every row repeated: a search ran its prompts once and now takes them apart."""
        for run in self._runs.values():
            run.repeat(times)
        self._prompts = {
            key: Prompt(one.image[index.to(one.image.device)], one.valid[index.to(one.valid.device)])
            for key, one in self._prompts.items()
        }
        self.gen.rows_per_request *= times
        self.gen.observations = {
            key: one.index_select(0, index.to(one.device)) for key, one in self.gen.observations.items()
        }
        if self.gen.forward is not None:
            self.gen.forward = self.gen.forward.select(index)

    def _answer(
        self, output: Any, logits: Tensor, branches: dict[Hashable, Tensor], keep: int, *, first_position: int
    ) -> Any:
        """Put the combined logits in place of main's at the kept positions."""
        keep = min(keep, logits.shape[1])
        self.gen.rows.crop(first_position)
        self.counts.positions = first_position + keep
        moved = {key: value[:, -keep:].to(logits.device) for key, value in branches.items()}
        self.gen.forward = Forward(logits[:, -keep:], moved, first_position, readouts=self._readouts)
        combined = self.combine(self.gen)
        if combined is not None:
            rest = logits[:, :-keep]
            output["logits"] = torch.cat([rest.float(), combined], dim=1) if rest.shape[1] else combined
        return output


def _main_rows(output: ModelOutput, rows: int, cache: Any) -> ModelOutput:
    """Main's share of a joined forward, as main's own forward would have returned it."""
    for name, value in list(output.items()):
        if name == "past_key_values":
            output[name] = cache
        else:
            output[name] = _first_rows(value, rows)
    return output


def _first_rows(value: Any, rows: int) -> Any:
    if isinstance(value, Tensor):
        return value[:rows] if value.ndim else value
    if isinstance(value, tuple):
        return tuple(_first_rows(one, rows) for one in value)
    return value
