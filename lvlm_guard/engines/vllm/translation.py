"""One guarded request as a group of requests: main's prompt and each branch's, as the strategies describe them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lvlm_guard import anatomy
from lvlm_guard.call.generation import create_generation, describe_request
from lvlm_guard.call.plan import Plan, build_plan, collect_values, outline_plan
from lvlm_guard.call.refusals import BRANCH
from lvlm_guard.call.rules import RequestedBranch, refuse
from lvlm_guard.engines.vllm.capabilities import PROMPT_STATES, lacking, refuse_hooks, refuse_plan
from lvlm_guard.engines.vllm.prompt_probes import StandInStates
from lvlm_guard.errors import StrategyRefused
from lvlm_guard.host.plugins import StrategyCalls
from lvlm_guard.request.branch_inputs import build_branch_inputs, describe_edit, edit_request
from lvlm_guard.request.requests import Request
from lvlm_guard.strategy.branches import Branch
from lvlm_guard.strategy.edits import AttentionEdit, HiddenEdit
from lvlm_guard.strategy.generation import Generation
from lvlm_guard.strategy.prompt import ModelInfo, PromptStates


@dataclass(frozen=True, eq=False)
class GroupMember:
    """The prompt of main or of a branch.

    Args:
        ids: Token ids, a placeholder for each feature of an image.
        inputs: Model inputs about the images, as a processor makes them; empty without an image.
    """

    ids: tuple[int, ...]
    inputs: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class DescribedGroup:
    """A guarded request as prompts.

    Args:
        main: Main's, after the strategies' edits of it.
        branches: Those of the branches, by key, in the order of the plan.
        probes: Prompts that are run once before, for the states that strategies asked for, by name.
        edited: Whose hidden states or attention are edited: `"main"`, or the key of a branch.
        plan: Outline of the plan.
    """

    main: GroupMember
    branches: Mapping[Hashable, GroupMember]
    probes: Mapping[str, GroupMember]
    edited: frozenset[Hashable]
    plan: str


def describe_group(
    request: Request, strategies: StrategyCalls, model: ModelInfo, *, reads_layers: bool = False
) -> DescribedGroup:
    """Ask the strategies what they want done, and return it as prompts of one group.

    Args:
        request: The user's, with one row.
        strategies: Those of the stack.
        model: The model that answers.
        reads_layers: Whether the engine can read and edit its inner layers.

    Raises:
        StrategyRefused: A strategy needs what a group of requests does not have, or cannot work on this request.
        Refused: As `Guard.generate` refuses the request.
    """
    refuse_hooks(strategies)
    gen = create_generation(request)
    gen.model = model
    edited = _edit_main(request, strategies, gen)
    states = StandInStates(model)
    plan = plan_group(strategies, gen, states if reads_layers else None)
    main = _as_member(edited.inputs)
    return DescribedGroup(
        main,
        {key: _build_member(branch, edited) for key, branch in plan.branches.items()},
        {name: main if branch is None else _build_member(branch, edited) for name, branch in states.prompts.items()},
        frozenset(edit.branch for edit in plan.edits_of(HiddenEdit))
        | frozenset(edit.branch for edit in plan.edits_of(AttentionEdit)),
        outline_plan(plan),
    )


def plan_group(
    strategies: StrategyCalls, gen: Generation, run_prompt: Callable[[Branch | None], PromptStates] | None
) -> Plan:
    """Return the plan of a group; strategies prepare their state in `gen`.

    Args:
        strategies: Those of the stack.
        gen: What travels through their hooks.
        run_prompt: Returns the states of a prompt; None where the engine can neither read nor edit its inner layers.

    Raises:
        StrategyRefused: A strategy needs what a group of requests does not have.
    """
    gen.services.run_prompt = run_prompt or _refuse_to_run
    try:
        call = functools.partial(strategies.call, gen=gen)
        call("start")
        plan = build_plan(call)
    except _PromptRunRefused as refusal:
        raise lacking(_name_strategy(refusal), PROMPT_STATES) from None
    refuse_plan(plan, reads_layers=run_prompt is not None)
    return plan


def describe_model(config: Any, tokenizer: Any) -> ModelInfo:
    """Return what strategies may know of a model whose config alone is at hand."""
    text = config.get_text_config(decoder=True)
    return ModelInfo(
        config,
        tokenizer,
        depth=int(getattr(text, "num_hidden_layers", 0) or 0),
        heads=int(getattr(text, "num_attention_heads", 0) or 0),
        tied_embeddings=bool(getattr(text, "tie_word_embeddings", False)),
    )


def _edit_main(request: Request, strategies: StrategyCalls, gen: Generation) -> Request:
    """Return the request after edits of main's own inputs, itself where there are none."""
    edited = request
    for edits in collect_values(functools.partial(strategies.call, gen=gen), "edit_inputs").values():
        for edit in edits:
            refuse(BRANCH, RequestedBranch(describe_edit(edit), edited))
            edited = edit_request(edited, edit)
    if edited is not request:
        describe_request(gen, edited)
    return edited


def _build_member(branch: Branch, request: Request) -> GroupMember:
    refuse(BRANCH, RequestedBranch(branch, request))
    return _as_member(build_branch_inputs(request, branch, None))


def _as_member(inputs: Mapping[str, Any]) -> GroupMember:
    about_images = {name: value for name, value in inputs.items() if anatomy.is_image_input(name)}
    return GroupMember(tuple(inputs["input_ids"][0].tolist()), about_images)


class _PromptRunRefused(StrategyRefused):
    """A strategy asked for the states of a prompt."""


def _refuse_to_run(_branch: Branch | None) -> PromptStates:
    raise _PromptRunRefused(f"A compiled model in vLLM has no {PROMPT_STATES}.")


def _name_strategy(refusal: Exception) -> str:
    """Return the strategy that a note on an error names, as the manager of hooks leaves it."""
    notes = getattr(refusal, "__notes__", [])
    return next((note.rpartition(": ")[2].partition(".")[0] for note in notes), "a strategy")
