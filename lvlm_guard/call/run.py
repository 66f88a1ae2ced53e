"""One guarded call: asked, planned, prepared, decoded, reported."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch

from lvlm_guard.arithmetic.fusion import settle_environment
from lvlm_guard.call.answers import finish_output
from lvlm_guard.call.asking import AskedCall
from lvlm_guard.call.decoding import decode
from lvlm_guard.call.generation import inside_call
from lvlm_guard.call.planning import PlannedCall, plan_call
from lvlm_guard.call.preparing import prepare_branches
from lvlm_guard.call.report import Report
from lvlm_guard.call.reporting import report_call
from lvlm_guard.forward.adapters import taken_off_after_errors
from lvlm_guard.forward.prefixes import describe_state


@torch.no_grad()
def run_call(call: AskedCall, share: Callable[[PlannedCall], PlannedCall] | None = None) -> tuple[Any, Report]:
    """Run a guarded call, and return the output of generate and the report.

    Args:
        call: The call as the user asked for it.
        share: Lets prompts of the planned call go on from what was run before, or None.

    Raises:
        Refused: The call cannot be guarded exactly.
        InputError: Something that a strategy yields cannot be used.
        NonFiniteLogits: The model or a branch produced NaN.
    """
    adapters = contextlib.nullcontext() if call.request.row_list is None else taken_off_after_errors(call.model)
    with inside_call(), settle_environment(), adapters, contextlib.ExitStack() as end:
        end.callback(call.gen.services.withdraw)
        state = describe_state(call.model) if call.may_ask else None
        planned = plan_call(call)
        if share is not None:
            planned = share(planned)
        with planned.interventions.installed(planned.main, call.gen):
            prepared = prepare_branches(planned)
            decoded = decode(prepared)
        decoded.effects.check_finite()
        finished = finish_output(decoded, state)
        return finished.output, report_call(decoded, finished)
