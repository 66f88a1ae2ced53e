"""What the branches of a stack add to main's context, read from the strategies themselves without running a model."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from lvlm_guard import Branch, Exchange, Generation, Replace, TokenEdit, anatomy
from lvlm_guard.bench.running.cost_model import BranchLength
from lvlm_guard.bench.running.shapes import Shape
from lvlm_guard.errors import GuardError, InputError, describe_error
from lvlm_guard.host.plugins import StrategyCalls
from lvlm_guard.host.stack import Stack
from lvlm_guard.strategy.prompt import ModelInfo, Prompt

UNCOUNTED_HOOKS = ("edit_inputs", "search", "attention", "hidden", "readouts", "finish")
"""Hooks whose work is not a matter of context lengths, so that a prediction leaves it out."""


@dataclass(frozen=True)
class Uncounted:
    """Work of a strategy that a prediction leaves out.

    Args:
        strategy: Name of the strategy.
        hooks: The hooks through which it asks for that work.
        cost: What the strategy itself says it costs; empty where it says nothing.
    """

    strategy: str
    hooks: tuple[str, ...]
    cost: str


def sketch_request(shape: Shape, prompt: int, config: Any = None, tokenizer: Any = None) -> Generation:
    """Return the state of a call with one picture and `prompt` text tokens, of which only the lengths mean anything.

    Args:
        shape: The model.
        prompt: Text tokens of the prompt.
        config: The model's config, where it is known.
        tokenizer: The model's tokenizer, for strategies that put text into prompts.
    """
    ids = torch.zeros(1, shape.image_tokens + prompt, dtype=torch.long)
    image_mask = torch.zeros_like(ids, dtype=torch.bool)
    image_mask[:, : shape.image_tokens] = True
    request = Prompt(
        inputs={"input_ids": ids},
        ids=ids,
        attention_mask=torch.ones_like(ids),
        image_mask=image_mask,
        has_image=True,
        image_token=None if config is None else anatomy.image_token_id(config),
    )
    return Generation(request, ModelInfo(config, tokenizer, shape.layers, shape.heads))


def read_branches(stack: Stack, request: Generation) -> tuple[BranchLength, ...]:
    """Ask the strategies of a stack for their branches, each key once, and return how long each is.

    Raises:
        ProcessorNeeded: A strategy puts text into a prompt, and `request` has no tokenizer.
        InputError: A strategy cannot say before a real call which branches it wants.
    """
    branches: dict[Hashable, Branch] = {}
    for strategy in stack:
        for branch in _ask(strategy, request):
            branches.setdefault(branch.key, branch)
    return tuple(_length(branch) for branch in branches.values())


def _ask(strategy: object, request: Generation) -> list[Branch]:
    calls = StrategyCalls([strategy])
    try:
        return calls.call("branches", request)[calls.names[0]] if calls.active("branches") else []
    except GuardError:
        raise
    except Exception as error:
        # A plugin's hook outside a real call: whatever it misses there ends up here.
        raise InputError(
            f"The branches of {calls.names[0]!r} are known only in a real call ({describe_error(error)}). "
            "Measure this stack instead: lvlm-guard bench cost."
        ) from error


def _length(branch: Branch) -> BranchLength:
    name = branch.key[0] if isinstance(branch.key, tuple) and branch.key else branch.key
    return BranchLength(
        name=str(name),
        image=0.0 if branch.drops_image else 1.0,
        text=sum(_added_tokens(edit) for edit in branch.tokens),
        encodes=branch.pixels is not None or branch.picture is not None,
    )


def _added_tokens(edit: TokenEdit) -> int:
    """Count text tokens; rows of a batch are padded to the longest."""
    if isinstance(edit, Exchange):
        return 0
    if isinstance(edit, Replace) or edit.per_row is None:
        return len(edit.ids)
    return max(map(len, edit.per_row), default=0)


def list_uncounted(stack: Iterable[object]) -> tuple[Uncounted, ...]:
    """Return what the strategies of a stack do beside branches and terms.

    Strategies at their neutral value do nothing.
    """
    work = []
    for strategy in stack:
        calls = StrategyCalls([strategy])
        hooks = tuple(hook for hook in UNCOUNTED_HOOKS if calls.active(hook))
        if hooks:
            work.append(Uncounted(calls.names[0], hooks, str(getattr(strategy, "cost", ""))))
    return tuple(work)
