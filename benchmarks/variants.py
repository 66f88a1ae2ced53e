"""The ways to generate that are compared, and rounds in which each of them has its turn."""

from __future__ import annotations

import atexit
import functools
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lvlm_guard_contrastive import M3ID, VCD
from lvlm_guard_layers import DeCo, DoLa
from lvlm_guard_reweighting import VAF
from lvlm_guard_steering import VSV, VTI, MemVR, Nullu
from measuring import Budget, Clock, Row, spread
from torch import Tensor
from transformers import DynamicCache, StoppingCriteria, StoppingCriteriaList

from lvlm_guard import Artefact, Guard
from lvlm_guard.anatomy import decoder_layers, layer_part
from lvlm_guard.forward.caches.growing import grow_in_place
from lvlm_guard.strategy.artefacts import config_hash, describe_model

PLAIN = "plain"
IN_PLACE = "plain, cache in place"
WARM_UP_TOKENS = 3
FACTOR = 1.01
RANK = 8
"""Directions in a made-up artefact; nullu takes the first four."""
OUT_OF_MEMORY = "out of memory"
OUT_OF_TIME = "skipped: time"
DID_NOT_RUN = "did not run"


@dataclass(frozen=True)
class Timing:
    """One call of generate, in milliseconds.

    Args:
        prefill: From the call to the first token, preparation and image encoding included.
        decode: Per token after the first, mean; joining the caches and all bookkeeping included.
        step: Median of the single steps after the first token.
        total: The whole call.
        steps: The single steps after the first token.
    """

    prefill: float
    decode: float
    step: float
    total: float
    steps: tuple[float, ...] = ()


@dataclass
class Variant:
    """A way to generate.

    Args:
        name: What the rows call it.
        generate: Takes the arguments of `model.generate`.
        inputs: Model inputs.
        settings: Further arguments.
        guard: The guard behind it, whose report tells what ran.
    """

    name: str
    generate: Callable[..., Any]
    inputs: Mapping[str, Tensor]
    settings: Mapping[str, Any] = field(default_factory=dict)
    guard: Guard | None = None

    def run(self, new_tokens: int, watch: StoppingCriteria) -> Tensor:
        """Generate exactly `new_tokens` tokens (at least 2), greedily; `watch` is called at every token.

        Raises:
            RuntimeError: Another number of tokens came back.
        """
        lengths = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False}
        asked = {**self.inputs, **lengths, **self.settings}
        with torch.no_grad():
            output: Tensor = self.generate(**asked, stopping_criteria=StoppingCriteriaList([watch]))
        made = output.shape[1] - self.inputs["input_ids"].shape[1]
        if made != new_tokens:
            raise RuntimeError(f"{self.name}: {made} tokens instead of {new_tokens}.")
        return output

    def describe(self) -> Row:
        """What the last call ran, from the guard's own report; empty columns without branches."""
        report = self.guard.report if self.guard is not None and len(self.guard.stack) else None
        return {
            "executor": report.executor if report else None,
            "decode_forwards_per_token": report.forwards.decode if report else None,
            "rows": self.inputs["input_ids"].shape[0] * (report.rows_per_forward if report else 1),
        }


class Stamps(StoppingCriteria):  # type: ignore[misc] # transformers is untyped here
    """Marks the moment at which every token was chosen, and never stops."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._go_on: Tensor | None = None
        self.marks: list[Any] = []

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:  # noqa: ARG002 - transformers passes scores
        """Mark now."""
        self.marks.append(self._clock.mark())
        if self._go_on is None:
            self._go_on = torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        return self._go_on


def guarded(model: Any, inputs: Mapping[str, Tensor], *, sequential: bool = True) -> list[Variant]:
    """Plain generate, the empty stack, one noise branch (batched, sequential), one image-free branch."""
    guards = {
        "empty stack": Guard(model, stack=[]),
        "noise branch, batched": Guard(model, stack=[VCD()], executor="batched"),
        "noise branch, sequential": Guard(model, stack=[VCD()], executor="sequential"),
        "image-free branch, batched": Guard(model, stack=[M3ID()], executor="batched"),
    }
    if not sequential:
        del guards["noise branch, sequential"]
    named = [Variant(name, guard.generate, inputs, guard=guard) for name, guard in guards.items()]
    return [Variant(PLAIN, model.generate, inputs), *named]


def inside(model: Any, inputs: Mapping[str, Tensor]) -> list[Variant]:
    """Work inside main's own layers, no branch: readouts after the forward and online, attention edits, hidden edits."""
    strategies = {
        "readouts (dola)": DoLa(),
        "readouts (deco)": DeCo(),
        "online readouts (memvr)": MemVR(),
        "attention edits (vaf)": VAF(),
        "hidden edits (vsv)": VSV(),
        "hidden edits (vti)": VTI(_artefact(model, "vti"), alpha_image=0.0),
        "hidden edits (nullu)": Nullu(_artefact(model, "nullu")),
    }
    guards = {name: Guard(model, stack=[strategy]) for name, strategy in strategies.items()}
    return [Variant(name, guard.generate, inputs, guard=guard) for name, guard in guards.items()]


def multiplied(model: Any) -> Callable[..., Any]:
    """Plain generate with a hook on every feed-forward block that multiplies its output: no hidden edit costs less."""

    def generate(**settings: Any) -> Any:
        parts = [layer_part(layer, "mlp") for layer in decoder_layers(model)]
        handles = [part.register_forward_hook(lambda _, __, output: output * FACTOR) for part in parts]
        try:
            return model.generate(**settings)
        finally:
            for handle in handles:
                handle.remove()

    return generate


def in_place(model: Any) -> Callable[..., Any]:
    """Plain generate with a cache that grows in place, as a guard's does: what a guard saves before strategies cost anything."""

    def generate(**settings: Any) -> Any:
        cache = DynamicCache(config=model.config.get_text_config())
        undo = grow_in_place(cache)
        try:
            return model.generate(**settings, past_key_values=cache)
        finally:
            undo()

    return generate


def _artefact(model: Any, kind: str) -> Path:
    """Directions made up for a model of random weights; what is in them does not change what they cost."""
    text = model.config.get_text_config()
    draw = torch.Generator().manual_seed(0)
    directions = torch.randn(text.num_hidden_layers, RANK, text.hidden_size, generator=draw)
    tensors = {
        "vti": {"decoder": directions[:, 0], "vision": torch.zeros(1, 1, 1)},
        "nullu": {"directions": torch.linalg.qr(directions.mT).Q.mT},
    }
    path = Path(_folder().name) / f"{kind}-{config_hash(model.config)}"
    Artefact(kind, tensors[kind], describe_model(model)).save(path)
    return path


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    return folder


def timed(
    variant: Variant, new_tokens: int, device: torch.device, read: Callable[[], float] = time.perf_counter
) -> Timing:
    """Time one call of `Variant.run`."""
    clock = Clock(device, read)
    stamps = Stamps(clock)
    clock.wait()
    start = clock.mark()
    variant.run(new_tokens, stamps)
    end = clock.mark()
    clock.wait()
    return _timing(clock, start, stamps.marks, end)


def _timing(clock: Clock, start: Any, marks: Sequence[Any], end: Any) -> Timing:
    steps = [clock.between(one, other) for one, other in itertools.pairwise(marks)]
    return Timing(
        prefill=clock.between(start, marks[0]),
        decode=clock.between(marks[0], marks[-1]) / len(steps),
        step=statistics.median(steps),
        total=clock.between(start, end),
        steps=tuple(steps),
    )


@dataclass
class Race:
    """Interleaved rounds of several variants: in every round each has one turn, the first moving on by one.

    Args:
        variants: What is compared; one is called `plain`.
        new_tokens: Tokens per call.
        device: The device that is timed.
        read: Reads the time without a GPU, in seconds.
    """

    variants: Sequence[Variant]
    new_tokens: int
    device: torch.device
    read: Callable[[], float] = time.perf_counter
    timings: dict[str, dict[int, Timing]] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def warm_up(self, budget: Budget) -> None:
        """Run every variant once, short, its times not kept."""
        for variant in self.variants:
            if budget.left:
                self._turn(variant, WARM_UP_TOKENS)

    def run(self, number: int, budget: Budget) -> None:
        """Run round `number`, as far as there is time."""
        first = number % len(self.variants)
        for variant in [*self.variants[first:], *self.variants[:first]]:
            if budget.left and variant.name not in self.failed:
                timing = self._turn(variant, self.new_tokens)
                if timing is not None:
                    self.timings.setdefault(variant.name, {})[number] = timing

    def _turn(self, variant: Variant, new_tokens: int) -> Timing | None:
        cuda = self.device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        timing = self._attempt(variant, new_tokens)
        if cuda and timing is None:
            torch.cuda.empty_cache()
        elif cuda:
            peak = torch.cuda.max_memory_allocated(self.device)
            self.peaks[variant.name] = max(peak, self.peaks.get(variant.name, 0))
        return timing

    def _attempt(self, variant: Variant, new_tokens: int) -> Timing | None:
        """Time one call; a variant that fails is noted and has no further turn, and the others go on."""
        try:
            return timed(variant, new_tokens, self.device, self.read)
        except torch.OutOfMemoryError:
            self.failed[variant.name] = OUT_OF_MEMORY
        except Exception as problem:  # noqa: BLE001 - recorded in the row; the script ends with an error code
            self.failed[variant.name] = f"failed: {type(problem).__name__}: {problem}"
        return None

    def ratios(self, name: str, variant: Variant) -> list[float]:
        """Ratios of one of the times to plain's, one for each round."""
        return [getattr(one, name) / getattr(base, name) for one, base in self.beside_plain(variant)]

    def beside_plain(self, variant: Variant) -> list[tuple[Timing, Timing]]:
        """Times of a variant and of plain generate, of every round that has both."""
        plain = self.timings.get(PLAIN, {})
        mine = self.timings.get(variant.name, {})
        return [(one, plain[number]) for number, one in mine.items() if number in plain]

    def row(self, variant: Variant) -> Row:
        """Times of a variant and its ratios to plain, each ratio within one round."""
        timings = self.timings.get(variant.name, {})
        if not timings:
            return {"variant": variant.name, "rounds": 0, "status": self.failed.get(variant.name, OUT_OF_TIME)}
        row: Row = {"variant": variant.name, "rounds": len(timings), **variant.describe()}
        for name in ("decode", "step", "prefill", "total"):
            row |= spread(f"{name}_ms", [getattr(one, name) for one in timings.values()])
            row |= spread(f"{name}_ratio", self.ratios(name, variant))
        peak = self.peaks.get(variant.name)
        return row | {
            "peak_memory_gib": None if peak is None else peak / 2**30,
            "status": self.failed.get(variant.name, "ok"),
        }
