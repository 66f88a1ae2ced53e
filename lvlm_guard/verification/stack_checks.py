"""The checks of one stack."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor

from lvlm_guard.errors import GuardError, Refused
from lvlm_guard.forward.executors.executor import ExecutorName
from lvlm_guard.guard import Guard
from lvlm_guard.host.plugins import StrategyCalls
from lvlm_guard.verification.checks import Measurement, Unproven
from lvlm_guard.verification.distances import POWER, distance, effect
from lvlm_guard.verification.runs import FreeRun, describe, run_along, run_freely, settings_for
from lvlm_guard.verification.stacks import VerifiedStack
from lvlm_guard.verification.subject import Subject, join_paths, largest

EXECUTORS: tuple[ExecutorName, ...] = ("sequential", "batched")


class Interruption(Exception):
    """Raised in the middle of a guarded call, on purpose."""


class StackChecks:
    """Measures one stack on a model.

    Args:
        subject: The model.
        stack: What is verified.
    """

    def __init__(self, subject: Subject, stack: VerifiedStack) -> None:
        self.subject = subject
        self.stack = stack
        self.guard = subject.guard.using(stack.stack)
        self._calls = StrategyCalls(stack.stack.strategies)

    @functools.cached_property
    def _first(self) -> FreeRun:
        """The first prompt, answered as the guard does by itself."""
        if loops := [hook for hook in ("search", "finish") if self._calls.active(hook)]:
            raise Unproven(
                f"Strategies with the hook {' and '.join(loops)} return answers without logits, so there is nothing to compare here. "
                "Compare its answers with lvlm-guard bench run."
            )
        return run_freely(self.guard, self.subject.prompts.first)

    @functools.cached_property
    def _plain(self) -> Tensor:
        """Logits `[steps, vocab]` of plain generate along the same tokens."""
        return self.subject.plain(self._first.path)

    @property
    def has_branches(self) -> bool:
        """Whether anything was run beside main."""
        return self._first.executor != "none"

    def effect(self) -> Measurement:
        """Measure how far the stack moves the logits."""
        figure = effect(self._first.logits[:, 0], self._plain)
        text = "over all steps" if figure else "It changed nothing: it may not act on this prompt. Try another one."
        return Measurement(figure, max(POWER, self.subject.limit), text, at_least=True)

    def neutral(self) -> Measurement:
        """Compare the stack where it changes nothing with plain generate."""
        assert self.stack.neutral is not None
        figure = self.subject.distance_to_plain(
            run_freely(self.subject.guard.using(self.stack.neutral), self.subject.prompts.first)
        )
        if self.stack.exactly:
            return Measurement(figure, self.subject.noise, "at its neutral values")
        return Measurement(figure, self.subject.limit, "an edit that changes nothing")

    def executors(self) -> Measurement:
        """Compare the ways to decode branches."""
        figures, texts = [0.0], [f"{self._first.executor}: {self._first.reason}"]
        for executor in EXECUTORS:
            if executor == self._first.executor:
                continue
            try:
                logits = run_along(self._insist(executor), self.subject.prompts.first, self._first.path)[:, 0]
            except Refused as error:
                texts.append(f"{executor} refused: {describe(error)}")
            else:
                figures.append(self._distance(logits, self._first.logits[:, 0]))
        if len(figures) == 1:
            raise Unproven(f"Only one way to decode here. {'; '.join(texts)}")
        return Measurement(largest(figures), self.subject.limit, "; ".join(texts))

    def recompute(self) -> Measurement:
        """Compare every step with a computation from scratch."""
        use_cache = not self.subject.recomputes
        expected, text = self._expect(use_cache=use_cache)
        if use_cache:
            text += ", with a cache, since plain generate itself gives other numbers without one"
        return Measurement(self._distance(self._first.logits[:, 0], expected), self.subject.limit, text)

    def _expect(self, *, use_cache: bool) -> tuple[Tensor, str]:
        path, subject = self._first.path, self.subject
        inputs = subject.prompts.first
        if self.stack.expected is not None:
            logits = self.stack.expected(subject.model, subject.guard.processor, inputs, path, use_cache)
            return logits, self.stack.reference
        if use_cache:
            raise Unproven("Plain generate gives other numbers without a cache, so there is nothing to compare with.")
        return run_along(self._insist("sequential"), inputs, path, use_cache=False)[:, 0], self.stack.reference

    def rows(self) -> Measurement:
        """Compare rows of a batch with single calls."""
        self.subject.check_rows()
        size = self.subject.prompts.size
        runs = [self._first, *(run_freely(self.guard, self.subject.inputs(row)) for row in range(1, size))]
        batched = run_along(self.guard, self.subject.batch, join_paths(runs))
        figures = [self._distance(batched[:, row], run.logits[:, 0]) for row, run in enumerate(runs)]
        return Measurement(largest(figures), self.subject.limit, f"{size} prompts of several lengths")

    def restored(self) -> Measurement:
        """Compare model and plain answer after a call, and after an exception inside one, with those before."""
        left = self.subject.differences()
        interrupted = self._interrupt()
        left += [f"{name} after an exception" for name in self.subject.differences()]
        if left:
            return Measurement(None, 0.0, f"other than before: {', '.join(left)}")
        text = "plain logits afterwards; hooks, methods and modes are as before"
        return Measurement(self.subject.again(), self.subject.noise, text + interrupted)

    def _interrupt(self) -> str:
        """Raise inside a guarded call, once a token is chosen; return what to add where that cannot be."""
        settings = settings_for(self.subject.model)
        try:
            self.guard.generate(**self.subject.prompts.first, **settings, stopping_criteria=[_interrupt])
        except Interruption:
            return ""
        except GuardError as error:
            return f"; after an exception nothing was looked at: {describe(error)}"
        raise Unproven("A stopping criterion that raised was not called, so nothing shows what an exception leaves.")

    def _distance(self, left: Tensor, right: Tensor) -> float:
        """Return how far two runs `[steps, vocab]` are apart, by the spread of plain logits of the first prompt."""
        return distance(left, right, self.subject.logits, self.subject.tolerance)

    def _insist(self, executor: ExecutorName) -> Guard:
        guard = self.subject.guard
        return Guard(guard.model, guard.processor, self.stack.stack, executor=executor)


def _interrupt(*_: Any, **__: Any) -> Tensor:
    raise Interruption
