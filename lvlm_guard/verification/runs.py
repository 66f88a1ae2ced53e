"""Runs of plain and guarded generate, and what becomes of their errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lvlm_guard import anatomy
from lvlm_guard.errors import GuardError, describe_error, shorten
from lvlm_guard.guard import Guard
from lvlm_guard.request.fences import find_fences
from lvlm_guard.testing.zoo.reference import follow
from lvlm_guard.verification.checks import Crash, Unproven

TOKENS = 4
"""Tokens of every run: a few steps, the first of them a prefill."""
SETTINGS: dict[str, Any] = {
    "max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False, "num_beams": 1,
    "output_logits": True, "return_dict_in_generate": True,
}  # fmt: skip
LONGEST_REASON = 300
Inputs = Mapping[str, Any]


@dataclass(frozen=True)
class FreeRun:
    """What a generate gave that chose its own tokens.

    Args:
        logits: `[steps, rows, vocab]` in fp32, on the CPU.
        path: Tokens `[rows, steps - 1]` that were chosen, without the last.
        executor: How branches were decoded; empty of plain runs.
        reason: Why so.
    """

    logits: Tensor
    path: Tensor
    executor: str = ""
    reason: str = ""


def run_freely(guard: Guard, inputs: Inputs) -> FreeRun:
    """Generate `TOKENS` tokens with a guard.

    Raises:
        GuardError: The call is refused.
        Crash: It ended in another error, and plain generate does not.
        Unproven: Plain generate ends in an error as well, or the memory is too small.
    """
    try:
        output = guard.generate(**inputs, **settings_for(guard.model))
    except Exception as error:
        raise _explain(error, lambda: run_freely_plain(guard.model, inputs)) from error
    return _read_run(output, guard.report.executor, guard.report.reason)


def run_freely_plain(model: Any, inputs: Inputs) -> FreeRun:
    """Generate `TOKENS` tokens without a guard.

    Raises:
        Unproven: The model cannot.
    """
    try:
        return _read_run(model.generate(**inputs, **settings_for(model)))
    except Exception as error:
        raise Unproven(f"Plain generate cannot run this: {describe(error)}") from error


def settings_for(model: Any) -> dict[str, Any]:
    """Return the settings of a free run: no token of an image is chosen, for which a computation from scratch would want an image."""
    placeholders = (anatomy.image_token_id(model.config), anatomy.video_token_id(model.config))
    tokens = {token for token in placeholders if token is not None} | find_fences(model.config).named
    return {**SETTINGS, "suppress_tokens": sorted(tokens)} if tokens else SETTINGS


def _read_run(output: Any, executor: str = "", reason: str = "") -> FreeRun:
    logits = torch.stack(list(output.logits)).float().cpu()
    path = output.sequences[:, -len(logits) :][:, :-1].cpu()
    return FreeRun(logits, path, executor, reason)


def run_along(guard: Guard, inputs: Inputs, path: Tensor, *, use_cache: bool = True) -> Tensor:
    """Return logits `[steps, rows, vocab]` of a guarded generate that chooses the tokens of a path.

    Raises:
        GuardError: The call is refused.
        Crash: It ended in another error, and plain generate does not.
        Unproven: Plain generate ends in an error as well, or the memory is too small.
    """
    try:
        return follow(guard, inputs, path, use_cache=use_cache, num_beams=1).cpu()
    except Exception as error:
        raise _explain(error, lambda: run_along_plain(guard.model, inputs, path, use_cache=use_cache)) from error


def run_along_plain(model: Any, inputs: Inputs, path: Tensor, *, use_cache: bool = True) -> Tensor:
    """Return logits `[steps, rows, vocab]` of plain generate that chooses the tokens of a path.

    Raises:
        Unproven: Plain generate cannot.
    """
    try:
        return follow(model, inputs, path, use_cache=use_cache, num_beams=1).cpu()
    except Exception as error:
        raise Unproven(f"Plain generate cannot run this: {describe(error)}") from error


def describe(error: BaseException) -> str:
    """Return class and text of an error in one line."""
    return shorten(" ".join(describe_error(error).split()), LONGEST_REASON)


def _explain(error: Exception, run_same_plain: Callable[[], object]) -> Exception:
    """Return what the error of a guarded call means, by running the same without a guard."""
    if isinstance(error, GuardError):
        return error
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return Unproven(f"The memory is too small: {describe(error)}")
    try:
        run_same_plain()
    except Unproven as plain:
        return Unproven(f"{plain} The guarded call ended in {describe(error)}")
    return Crash(f"Plain generate runs, the guarded one raised {describe(error)}")
