"""The stacks that are verified where nobody names one: one for each mechanism, with an effect that is known exactly."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lvlm_guard.host.plugins import is_neutral
from lvlm_guard.host.stack import Stack
from lvlm_guard.request.branch_inputs import build_branch_inputs
from lvlm_guard.request.requests import Request
from lvlm_guard.strategy.edits import AttentionEdit, HiddenEdit
from lvlm_guard.testing.zoo import mechanisms, reference
from lvlm_guard.verification.checks import Unproven
from lvlm_guard.verification.distances import IMPLAUSIBLE
from lvlm_guard.verification.runs import Inputs, run_along_plain

FAVOUR = 1.0
"""What is added to the attention scores of image tokens."""
FROM_SCRATCH = "plain generate without a cache"
Expected = Callable[[Any, Any, Inputs, Tensor, bool], Tensor]
"""Maps model, processor, inputs of one row, tokens `[1, steps - 1]` and whether a cache is kept to logits `[steps, vocab]`."""


@dataclass(frozen=True)
class VerifiedStack:
    """A stack, and what is known about it.

    Args:
        name: What it is called.
        stack: The strategies.
        expected: Computes its logits by plain generate; None where only the guard itself can compute them from scratch.
        reference: What `recompute` compares with.
        neutral: The same strategies where they change nothing; None where they do not say when.
        exactly: Whether the neutral stack asks for nothing, so that its logits are bit-identical to plain ones.
    """

    name: str
    stack: Stack
    expected: Expected | None = None
    reference: str = "the same without a cache and a batch of branches"
    neutral: Stack | None = None
    exactly: bool = True


def read_stack(name: str, stack: Any) -> VerifiedStack:
    """Return what is known about a stack of the user's.

    Raises:
        StackError: It cannot be built.
    """
    strategies = Stack.of(stack)
    neutral = [dataclasses.replace(each, **_neutral_values(each)) for each in strategies]  # type: ignore[type-var]
    stated = bool(neutral) and all(is_neutral(each) for each in neutral)
    return VerifiedStack(name, strategies, neutral=Stack.of(neutral) if stated else None)


def _neutral_values(strategy: Any) -> dict[str, Any]:
    return dict(getattr(strategy, "neutral", None) or {})


def default_stacks(model: Any) -> list[VerifiedStack]:
    """Return a stack for each mechanism: three kinds of branches, attention, hidden states, early layers, vision tower."""
    depth = _depth(model)
    inner = (depth // 3, max(2 * depth // 3, depth // 3 + 1))
    return [
        *(_branch(kind) for kind in ("noise", "removal", "longer")),
        VerifiedStack(
            "attention",
            Stack.of([mechanisms.InsideModel(attends=(_attention("add"),))]),
            neutral=Stack.of([mechanisms.InsideModel(attends=(_attention(mechanisms.unchanged),))]),
            exactly=False,
        ),
        VerifiedStack(
            "hidden",
            Stack.of([mechanisms.InsideModel(hides=(HiddenEdit("residual", halved, layers=inner),))]),
            _halved_by_hand(inner),
            f"{FROM_SCRATCH}, the layers' outputs halved",
            Stack.of([mechanisms.InsideModel(hides=(HiddenEdit("residual", mechanisms.unchanged, layers=inner),))]),
            exactly=False,
        ),
        _early_layers(max(depth // 2, 1)),
        VerifiedStack(
            "vision",
            Stack.of([mechanisms.InsideModel(hides=(HiddenEdit("residual", halved, tower="vision"),))]),
            _tower_by_hand,
            f"{FROM_SCRATCH}, the outputs of the tower's layers halved",
        ),
    ]


def halved(hidden: Tensor, _: Any = None) -> Tensor:
    """Return half of hidden states `[..., hidden]`."""
    return hidden / 2


def _depth(model: Any) -> int:
    try:
        return len(reference.decoder_layers(model))
    except LookupError:
        return 2


def _attention(operation: Any) -> AttentionEdit:
    return AttentionEdit((0.0, 1.0), operation, FAVOUR, keys="image", queries="all")


def _branch(kind: str) -> VerifiedStack:
    def expected(model: Any, processor: Any, inputs: Inputs, path: Tensor, use_cache: bool) -> Tensor:
        request = Request(dict(inputs), {}, model.config, processor)
        changed = build_branch_inputs(request, mechanisms.BRANCHES[kind], None)
        main, branch = (run_along_plain(model, each, path, use_cache=use_cache)[:, 0] for each in (inputs, changed))
        return torch.where(main > IMPLAUSIBLE, mechanisms.contrast(main, branch), main)

    return VerifiedStack(
        kind,
        Stack.of([mechanisms.AgainstBranch(kind)]),
        expected,
        f"the contrast of main and branch, each by {FROM_SCRATCH}",
    )


def _halved_by_hand(inner: tuple[int, int]) -> Expected:
    def expected(model: Any, _: Any, inputs: Inputs, path: Tensor, use_cache: bool) -> Tensor:
        with reference.outputs_changed(_layers(model)[slice(*inner)], halved):
            return run_along_plain(model, inputs, path, use_cache=use_cache)[:, 0]

    return expected


def _tower_by_hand(model: Any, _: Any, inputs: Inputs, path: Tensor, use_cache: bool) -> Tensor:
    try:
        layers = list(reference.tower_layers(model))
    except LookupError as error:
        raise Unproven(str(error)) from error
    with reference.outputs_changed(layers, halved):
        return run_along_plain(model, inputs, path, use_cache=use_cache)[:, 0]


def _early_layers(layer: int) -> VerifiedStack:
    def expected(model: Any, _: Any, inputs: Inputs, path: Tensor, use_cache: bool) -> Tensor:
        main = run_along_plain(model, inputs, path, use_cache=use_cache)[:, 0]
        with reference.ended_after(_layers(model), layer - 1):
            early = run_along_plain(model, inputs, path, use_cache=use_cache)[:, 0]
        return torch.where(main > IMPLAUSIBLE, main + mechanisms.LENS_WEIGHT * early, main)

    text = f"{FROM_SCRATCH}, the layers after the one that is read left out"
    return VerifiedStack("readouts", Stack.of([mechanisms.EarlyLayers((layer,))]), expected, text)


def _layers(model: Any) -> list[Any]:
    try:
        return list(reference.decoder_layers(model))
    except LookupError as error:
        raise Unproven(str(error)) from error
