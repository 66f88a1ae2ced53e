"""All checks of a model, one after another."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from lvlm_guard.bench.running import runner
from lvlm_guard.bench.running.cost import PLAIN, Cost, Spread, measure_costs
from lvlm_guard.errors import GuardError, GuardWarning, InputError, NonFiniteLogits
from lvlm_guard.guard import Guard
from lvlm_guard.testing.intact import weights_digest
from lvlm_guard.verification.checks import Check, CheckName, Crash, Measurement, Status, Unproven
from lvlm_guard.verification.prompts import PROMPT, PromptSet
from lvlm_guard.verification.results import Verification, describe_model, describe_versions
from lvlm_guard.verification.runs import describe
from lvlm_guard.verification.stack_checks import StackChecks
from lvlm_guard.verification.stacks import VerifiedStack, default_stacks, read_stack
from lvlm_guard.verification.subject import Subject

TIMED_TOKENS, ROUNDS = 8, 3
Watch = Callable[[Check, int], None]
"""Called with each check as it comes, and with the number of checks that are still planned."""


def verify(
    guard: Guard,
    stacks: Mapping[str, Any] | None = None,
    *,
    prompt: str = PROMPT,
    pictures: Sequence[Any] = (),
    name: str | None = None,
    watch: Watch = lambda check, left: None,  # noqa: ARG005 - the signature of `Watch`
) -> Verification:
    """Show what works on a model: run it plain and guarded, compare the logits of a few steps, and measure the cost.

    Args:
        guard: Holds the model and its processor; its own stack is not used.
        stacks: What to verify by name, each as `Stack.of` takes it; None is a stack for each mechanism.
        prompt: What to ask about the first picture.
        pictures: What `guard.inputs` takes as pictures, one for each of three prompts, in turns; drawn where there are none.
        name: What the model is called in the outcome; None is what its config says.
        watch: Called with each check as it comes.

    Returns:
        The checks. Errors of guarded calls are among them.

    Raises:
        InputError: The processor cannot make inputs, or plain generate cannot answer.
        StackError: A stack cannot be built.
    """
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore", GuardWarning)
        named = None if stacks is None else [read_stack(name, stack) for name, stack in stacks.items()]
        try:
            subject = Subject(guard, PromptSet(guard, prompt, pictures))
        except Unproven as error:
            raise InputError(
                f"{error} Name another --prompt or --image, or see whether the model runs without a guard."
            ) from error
        return _Course(subject, default_stacks(guard.model) if named is None else named, watch).run(name)


class _Course:
    """Runs all checks in order, and forgets none."""

    def __init__(self, subject: Subject, stacks: Sequence[VerifiedStack], watch: Watch) -> None:
        self._subject = subject
        self._stacks = [StackChecks(subject, stack) for stack in stacks]
        self._watch = watch
        self._checks: list[Check] = []
        self._planned = len(MODEL_CHECKS) + 1 + sum(map(_count_checks, self._stacks))

    def run(self, called: str | None = None) -> Verification:
        """Run every check."""
        subject = self._subject
        weights = weights_digest(subject.model)
        model = describe_model(subject.model, weights, called)
        for name in MODEL_CHECKS:
            self._add(_run(name, "", getattr(subject, name)))
        answering = [stack for stack in self._stacks if self._check_stack(stack)]
        self._measure_costs(answering)
        self._add(_run("restored", "", lambda: _compare_weights(subject, weights)))
        return Verification(tuple(self._checks), model, describe_versions())

    def _check_stack(self, checks: StackChecks) -> bool:
        """Run the checks of one stack; return whether it answers at all."""
        name = checks.stack.name
        first = _run("effect", name, checks.effect)
        self._add(first)
        if first.figure is None:
            self._planned -= _count_checks(checks) - 1
            return False
        for check in _list_checks(checks):
            if check == "executors" and not checks.has_branches:
                self._planned -= 1
                continue
            self._add(_run(check, name, getattr(checks, check)))
        return True

    def _measure_costs(self, answering: Sequence[StackChecks]) -> None:
        """Time plain generate and all stacks that answer, in turns."""
        started = time.perf_counter()
        try:
            costs = _time(self._subject, answering)
        except Exception as error:  # noqa: BLE001 - a model may raise anything
            costs, reason = {}, describe(error)
        seconds = (time.perf_counter() - started) / max(2 * len(answering), 1)
        for checks in answering:
            name = checks.stack.name
            cost = costs.get(f"{GUARDED}{name}")
            spreads: dict[CheckName, Spread | None] = {
                "prefill cost": None if cost is None else cost.first_ratio,
                "decode cost": None if cost is None else cost.token_ratio,
            }
            for check, spread in spreads.items():
                if spread is not None:
                    self._add(Check(check, name, "pass", _round(spread.median), None, RATIO, round(seconds, 2)))
                else:
                    text = "The answer is not made in one pass." if cost else f"It was not timed: {reason}"
                    self._add(Check(check, name, "unproven", says=text))

    def _add(self, check: Check) -> None:
        self._checks.append(check)
        self._planned -= 1
        self._watch(check, self._planned)


MODEL_CHECKS: tuple[CheckName, ...] = ("repeats", "cache", "rows", "neutral")
GUARDED = "guarded "
RATIO = f"median of {ROUNDS} rounds, {TIMED_TOKENS} tokens"


def _list_checks(checks: StackChecks) -> list[CheckName]:
    """Return the checks of a stack after its effect and before its cost."""
    neutral: list[CheckName] = [] if checks.stack.neutral is None else ["neutral"]
    return [*neutral, "executors", "recompute", "rows", "restored"]


def _count_checks(checks: StackChecks) -> int:
    return len(_list_checks(checks)) + 3


def _run(name: CheckName, stack: str, measure: Callable[[], Measurement]) -> Check:
    """Run a check; no error of a model or a strategy leaves it."""
    started = time.perf_counter()
    status, measured = _judge(measure)
    seconds = round(time.perf_counter() - started, 2)
    return Check(name, stack, status, _round(measured.figure), measured.tolerance, measured.says, seconds)


def _judge(measure: Callable[[], Measurement]) -> tuple[Status, Measurement]:
    try:
        measured = measure()
    except NonFiniteLogits as error:
        return "failed", Measurement(None, says=describe(error))
    except GuardError as error:
        return "refused", Measurement(None, says=describe(error))
    except Unproven as error:
        return "unproven", Measurement(None, says=str(error))
    except Crash as error:
        return "failed", Measurement(None, says=str(error))
    except Exception as error:  # noqa: BLE001 - a model or a strategy may raise anything
        return "failed", Measurement(None, says=describe(error))
    return "pass" if measured.is_good else "failed", measured


def _round(figure: float | None) -> float | None:
    return None if figure is None or not math.isfinite(figure) else float(f"{figure:.2e}")


def _compare_weights(subject: Subject, before: str) -> Measurement:
    """Compare parameters and buffers with those before everything."""
    equal = weights_digest(subject.model) == before
    return Measurement(
        0.0 if equal else None, 0.0, f"parameters and buffers are {'as' if equal else 'other than'} before"
    )


def _time(subject: Subject, stacks: Sequence[StackChecks]) -> dict[str, Cost]:
    ways = {
        PLAIN: subject.model.generate,
        **{f"{GUARDED}{checks.stack.name}": checks.guard.generate for checks in stacks},
    }
    with runner.one_thread_if_small(subject.model):
        return measure_costs(ways, [subject.prompts.first], new_tokens=TIMED_TOKENS, rounds=ROUNDS)
