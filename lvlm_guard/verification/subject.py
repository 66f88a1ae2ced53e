"""The model that is verified, its prompts, and what plain generate gives: each computed once."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lvlm_guard.guard import Guard
from lvlm_guard.testing.intact import surroundings
from lvlm_guard.testing.zoo.mechanisms import InsideModel
from lvlm_guard.verification.checks import Measurement, Unproven
from lvlm_guard.verification.distances import distance, tolerance_of
from lvlm_guard.verification.prompts import PromptSet
from lvlm_guard.verification.runs import FreeRun, Inputs, run_along_plain, run_freely, run_freely_plain

ITSELF = "plain generate alone"
GAIN = 4.0
"""How much larger the contrasts that are verified make a difference of logits."""


class Subject:
    """A model under verification.

    Args:
        guard: Holds model and processor.
        prompts: What the model is asked.

    Raises:
        Unproven: Plain generate cannot answer the first prompt.
    """

    def __init__(self, guard: Guard, prompts: PromptSet) -> None:
        self.guard = guard
        self.model: Any = guard.model
        self.prompts = prompts
        self.tolerance = tolerance_of(self.model.dtype)
        self.noise = 0.0
        """How far two plain runs are apart."""
        self._rows = {0: prompts.first}
        self._plain = run_freely_plain(self.model, prompts.first)
        self._surroundings = surroundings(self.model)  # transformers leaves hooks of its own behind a first call

    def inputs(self, row: int) -> Inputs:
        """Return the inputs of one prompt."""
        if row not in self._rows:
            self._rows[row] = self.prompts.row(row)
        return self._rows[row]

    @functools.cached_property
    def batch(self) -> Inputs:
        """The inputs of all prompts, padded on the left; `Unproven` where there are none."""
        inputs: Inputs = self.prompts.batch()
        return inputs

    @property
    def path(self) -> Tensor:
        """The tokens `[1, steps - 1]` that plain generate chooses for the first prompt."""
        return self._plain.path

    @property
    def logits(self) -> Tensor:
        """The logits `[steps, vocab]` of plain generate for the first prompt."""
        return self._plain.logits[:, 0]

    def plain(self, path: Tensor) -> Tensor:
        """Return logits `[steps, vocab]` of plain generate for the first prompt along other tokens."""
        return run_along_plain(self.model, self.prompts.first, path)[:, 0]

    def distance_to_plain(self, run: FreeRun) -> float:
        """Return how far a run of the first prompt is from plain generate; infinite where it chose other tokens."""
        if not torch.equal(run.path, self.path):
            return float("inf")
        return distance(run.logits[:, 0], self.logits, self.logits)

    def repeats(self) -> Measurement:
        """Compare two plain runs."""
        self.noise = self.again()
        exactness = "bit for bit" if self.noise == 0 else "not bit for bit"
        return Measurement(self.noise, self.tolerance, f"{ITSELF}, {exactness}")

    def differences(self) -> list[str]:
        """Return what of the model is other than when this was asked last."""
        before, self._surroundings = self._surroundings, surroundings(self.model)
        return [name for name, value in before.items() if self._surroundings[name] != value]

    def again(self) -> float:
        """Return how far plain generate is now from its first run."""
        return self.distance_to_plain(run_freely_plain(self.model, self.prompts.first))

    def cache(self) -> Measurement:
        """Compare plain runs with and without a cache."""
        return Measurement(self._uncached, self.tolerance, ITSELF)

    @functools.cached_property
    def _uncached(self) -> float:
        without = run_along_plain(self.model, self.prompts.first, self.path, use_cache=False)[:, 0]
        return distance(without, self.logits, self.logits)

    @property
    def recomputes(self) -> bool:
        """Whether plain generate gives the same without a cache, so that a computation from scratch is a reference."""
        try:
            return self._uncached <= self.tolerance
        except Unproven:
            return False

    def rows(self) -> Measurement:
        """Compare rows of a plain batch with single plain runs."""
        return Measurement(self._batched, self.tolerance, f"{ITSELF}, {self.prompts.size} prompts of several lengths")

    @functools.cached_property
    def _batched(self) -> float:
        batch = self.batch
        rows = range(self.prompts.size)
        runs = [run_freely_plain(self.model, self.inputs(row)) for row in rows]
        batched = run_along_plain(self.model, batch, join_paths(runs))
        return largest(distance(batched[:, row], runs[row].logits[:, 0], runs[row].logits[:, 0]) for row in rows)

    @functools.cached_property
    def limit(self) -> float:
        """How far guarded runs of the same may be apart: a contrast makes the rounding of plain runs larger."""
        return max(self.tolerance, *(GAIN * figure for figure in self._measured() if figure <= self.tolerance))

    def _measured(self) -> Iterator[float]:
        """Yield how far plain runs of the same are apart, as far as that can be told."""
        yield 0.0
        for name in ("_uncached", "_batched"):
            with contextlib.suppress(Unproven):
                yield getattr(self, name)

    def check_rows(self) -> None:
        """Raise `Unproven` where rows of plain generate depend on their batch."""
        if not self._batched <= self.tolerance:
            raise Unproven(f"Rows of plain generate depend on their batch already, by {self._batched:.2g}.")

    def neutral(self) -> Measurement:
        """Compare plain runs with guarded ones that have nothing to do."""
        runs = [run_freely(self.guard.using(stack), self.prompts.first) for stack in (None, [InsideModel()])]
        text = "the empty stack, and a strategy that asks for nothing"
        return Measurement(largest(map(self.distance_to_plain, runs)), self.noise, text)


def join_paths(runs: list[FreeRun]) -> Tensor:
    """Return the tokens `[rows, steps - 1]` of single runs.

    Raises:
        Unproven: They are of several lengths.
    """
    if len({run.path.shape[1] for run in runs}) > 1:
        raise Unproven("The prompts have answers of several lengths, so they are not compared as one batch.")
    return torch.cat([run.path for run in runs])


def largest(figures: Any) -> float:
    """Return the largest of figures; NaN where there is one."""
    return float(torch.tensor(list(figures), dtype=torch.float64).max())
