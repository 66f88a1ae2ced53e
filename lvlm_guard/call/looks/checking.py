"""Whether a model goes on from prefixes as it does from whole prompts, tried once for each model and stack."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from lvlm_guard.arithmetic.effects import format_key
from lvlm_guard.call.asking import AskedCall, build_asked_call
from lvlm_guard.call.decoding import decode
from lvlm_guard.call.looks.memory import PrefixMemory
from lvlm_guard.call.looks.preparation import LookPreparation
from lvlm_guard.call.planning import PlannedCall, plan_call
from lvlm_guard.call.preparing import prepare_branches
from lvlm_guard.call.prompt_preparation import PromptPreparation
from lvlm_guard.errors import GuardError, ModelRefused, describe_error
from lvlm_guard.forward.executors.batch_trial import FAILURES, measure_coarseness
from lvlm_guard.forward.prefixes import describe_kind
from lvlm_guard.host.plugins import StrategyCalls
from lvlm_guard.protocols import Model
from lvlm_guard.request.requests import Request
from lvlm_guard.strategy.branches import MAIN
from lvlm_guard.strategy.generation import Generation
from lvlm_guard.strategy.hookspecs import hookimpl

TOLERANCE = 2**-10
"""Rounding between a whole prompt and one in two parts, by the largest logit; in half precision more."""
TRIAL = {"num_beams": 1, "num_return_sequences": 1, "do_sample": False, "max_new_tokens": 2, "min_new_tokens": 2}
"""Settings of a trial: the token behind the prompt, and one more step."""
CHOICE = object()
"""Under which a step keeps what generate chooses from."""
Share: TypeAlias = Callable[[PlannedCall, PrefixMemory], PlannedCall]
Steps: TypeAlias = "list[dict[Hashable, Tensor]]"

_verdicts: weakref.WeakKeyDictionary[nn.Module, dict[Hashable, str]] = weakref.WeakKeyDictionary()
"""What was tried, by the module that decodes: why it is not exact, or nothing."""


@dataclass(frozen=True, eq=False)
class LogitsRecorder:
    """A strategy that keeps the raw logits of main and of branches, and changes nothing."""

    name: ClassVar[str] = "look-recorder"
    steps: Steps = field(default_factory=list)

    @hookimpl
    def observe(self, gen: Generation) -> None:
        """Keep the newest position of the first row."""
        forward = gen.forward
        assert forward is not None
        logits = {MAIN: forward.main, **forward.branches, CHOICE: gen.combined}
        self.steps.append({key: values[0, -1].float().cpu() for key, values in logits.items()})


def check_prefixes(planned: PlannedCall, requests: tuple[Request, Request], memory: PrefixMemory, share: Share) -> None:
    """Compare a prompt that goes on from the prefixes of a look with the same prompt run whole, once for each kind.

    Args:
        planned: A call on the look.
        requests: The prompt alone, and laid out behind the prefix, as the first of its rows.
        memory: The prefixes.
        share: Lets a planned call go on from them.

    Raises:
        ModelRefused: They differ.
    """
    _, behind = requests
    call, module = planned.call, planned.main.module
    assert isinstance(module, nn.Module)
    strategies = repr([call.strategies.find(name) for name in call.strategies.names])
    kind = (describe_kind(module), strategies, len(behind.input_ids), memory.source)
    verdicts = _verdicts.setdefault(module, {})
    if kind not in verdicts:
        verdicts[kind] = _try(planned, requests, memory, share)
    if verdicts[kind]:
        raise ModelRefused(verdicts[kind])


def _try(planned: PlannedCall, requests: tuple[Request, Request], memory: PrefixMemory, share: Share) -> str:
    """Return how a prompt behind the prefixes differs from a whole one; empty where it does not."""
    (apart, behind), call = requests, planned.call
    expected, actual = LogitsRecorder(), LogitsRecorder()
    _run(plan_call(_build_trial(call, apart, expected)))
    try:
        _run(share(plan_call(_build_trial(call, behind, actual, LookPreparation)), memory))
    except FAILURES as error:  # whole prompts have just run, so it is the look that this model cannot take
        if isinstance(error, GuardError):
            raise
        return (
            f"{type(planned.main.module).__name__} cannot go on from the beginning of a prompt: {describe_error(error)}. Pass whole "
            "prompts to guard.generate."
        )
    return _compare(planned.main.module, expected.steps, actual.steps)


def _build_trial(
    call: AskedCall,
    request: Request,
    recorder: LogitsRecorder,
    preparation: type[PromptPreparation] = PromptPreparation,
) -> AskedCall:
    strategies = [call.strategies.find(name) for name in call.strategies.names]
    trial = Request(request.inputs, TRIAL, request.config, request.processor, request.pictures, request.defaults)
    return build_asked_call(
        call.model, call.generate, trial, StrategyCalls([*strategies, recorder]), call.executor, None, preparation
    )


def _run(planned: PlannedCall) -> None:
    with planned.interventions.installed(planned.main, planned.call.gen):
        decode(prepare_branches(planned))


def _compare(module: Model, expected: Steps, actual: Steps) -> str:
    """Return how logits differ by more than rounding, step by step as long as both went the same way; empty where they do not."""
    coarseness = measure_coarseness(module)
    for before, after in zip(expected, actual, strict=False):
        for key, logits in before.items():
            if key is CHOICE:
                continue
            allowed = TOLERANCE * coarseness * float(logits.abs().max())
            error = float((logits - after[key]).abs().max())
            if bool(logits.isfinite().all()) and not error <= allowed:
                return (
                    f"{type(module).__name__} does not give the logits of a whole prompt where it goes on from the beginning of one "
                    f"({key if key == MAIN else format_key(key)}: {error:.2g} apart, {allowed:.2g} allowed), as where a beginning "
                    "reads what follows it. Pass whole prompts to guard.generate."
                )
        if not torch.equal(before[CHOICE].argmax(), after[CHOICE].argmax()):
            break
    return ""
