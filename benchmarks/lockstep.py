"""Ways to generate side by side, a token of each in turn: what slows the machine for seconds slows all of them alike."""

from __future__ import annotations

import copy
import random
import statistics
import time
from typing import Any

import greenlet
import numpy as np
import torch
from measuring import Budget, Row
from torch import Tensor, nn
from transformers import StoppingCriteria
from variants import Race, Timing, Variant

SECONDS_TO_MS = 1e3
RESAMPLES = 4000


def sharing(model: nn.Module) -> Any:
    """The same weights in modules of their own: hooks on one model are not called for the other."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(one): one for one in tensors})


class Lockstep(Race):
    """Rounds in which all variants generate at once, in one thread that goes on to another of them at every token.

    The ratio of a token is to the token that plain generate ran beside it; that of a round is the median over its
    tokens. Variants must not share modules (see `sharing`). For the CPU alone: nothing waits for a device here.
    """

    @torch.no_grad()
    def run(self, number: int, budget: Budget) -> None:
        """Run round `number`, if there is time."""
        taken = [_Run(one, self.new_tokens) for one in self.variants if one.name not in self.failed and budget.left]
        draw = random.Random(number)
        for _ in range(self.new_tokens + 1):  # the last one lets generate return
            for run in draw.sample(taken, len(taken)):
                run.take_turn()
        for run in taken:
            if run.problem is None:
                self.timings.setdefault(run.variant.name, {})[number] = run.timing
            else:
                self.failed[run.variant.name] = run.problem

    def ratios(self, name: str, variant: Variant) -> list[float]:
        """A round's ratio of decode steps is the median of its tokens' ratios."""
        if name not in ("decode", "step"):
            return super().ratios(name, variant)
        pairs = self.beside_plain(variant)
        return [statistics.median(a / b for a, b in zip(one.steps, base.steps, strict=True)) for one, base in pairs]

    def row(self, variant: Variant) -> Row:
        """The row of a race, and an interval of the ratio of decode steps: 95 %, by bootstrap over rounds."""
        row = super().row(variant)
        if ratios := self.ratios("decode", variant):
            drawn = np.random.default_rng(0).choice(ratios, (RESAMPLES, len(ratios)))
            row["ratio_interval"] = np.percentile(np.median(drawn, axis=1), [2.5, 97.5]).tolist()
        return row


class _Run(StoppingCriteria):  # type: ignore[misc] # transformers is untyped here
    """One call of generate that pauses at every token, and never stops.

    Args:
        variant: What generates.
        new_tokens: Tokens per call.
    """

    def __init__(self, variant: Variant, new_tokens: int) -> None:
        self.variant = variant
        self.problem: str | None = None
        self._new_tokens = new_tokens
        self._seconds: list[float] = []
        self._paused = greenlet.greenlet(self._generate)

    @property
    def timing(self) -> Timing:
        """Times of the whole call."""
        prefill, *steps = (one * SECONDS_TO_MS for one in self._seconds)
        return Timing(prefill, statistics.fmean(steps), statistics.median(steps), prefill + sum(steps), tuple(steps))

    def take_turn(self) -> None:
        """Run to the next token; nothing once generate has returned or failed."""
        if not self._paused.dead:
            self._begun = time.perf_counter()
            self._paused.switch()

    def _generate(self) -> None:
        try:
            self.variant.run(self._new_tokens, self)
        except Exception as problem:  # noqa: BLE001 - recorded in the row; the script ends with an error code
            self.problem = f"failed: {type(problem).__name__}: {problem}"

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:  # noqa: ARG002 - transformers passes scores
        """Note the time of this token, and let the others have theirs."""
        self._seconds.append(time.perf_counter() - self._begun)
        self._paused.parent.switch()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
