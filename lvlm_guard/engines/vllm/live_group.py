"""A group while it is decoded: its strategies, and what they keep from token to token."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import Tensor

from lvlm_guard.arithmetic import fusion
from lvlm_guard.arithmetic.hidden_edits import Kernels
from lvlm_guard.call.plan import outline_plan
from lvlm_guard.call.terms import blame_misfit
from lvlm_guard.engines.vllm.attention_rows import PlacedEdit
from lvlm_guard.engines.vllm.groups import Membership
from lvlm_guard.engines.vllm.layer_editing import PlannedEdit
from lvlm_guard.engines.vllm.member_view import MemberPrompt
from lvlm_guard.engines.vllm.prompt_probes import KnownStates
from lvlm_guard.engines.vllm.translation import plan_group
from lvlm_guard.errors import InputError, StrategyRefused
from lvlm_guard.host.plugins import StrategyCalls
from lvlm_guard.host.stack import Stack
from lvlm_guard.strategy.branches import MAIN
from lvlm_guard.strategy.edits import AttentionEdit, HiddenEdit, Readout, readout_layers
from lvlm_guard.strategy.forward import Forward
from lvlm_guard.strategy.generation import Generation, Services
from lvlm_guard.strategy.prompt import ModelInfo, Prompt, PromptStates

EditKind = TypeVar("EditKind", HiddenEdit, AttentionEdit)
OTHER_PLAN = (
    "What the stack plans depends on states of prompts, which requests in vLLM cannot follow: they are made before the prompts have "
    "run. Run it in the process, Guard(model, processor)."
)


class LiveGroup:
    """The strategies of one group, asked for their terms at every token.

    Args:
        strategies: Those of the stack.
        ids: Token ids of main's prompt.
        placeholder: Id that stands for parts of an image in it, or None.
        model: The model that answers.
        states: States of prompts that were run for the group, by name.
        outline: Outline of the plan that the group was made by; None where it is not compared.

    Attributes:
        gen: What travels through the strategies' hooks.
        kernels: What edits of hidden states were found to need.
        branches: Keys of the branches, in the order of the group's members.
        readouts: Layer outputs of main to read, counted from 1, and whether the final norm comes first.

    Raises:
        StrategyRefused: A strategy needs what a group of requests does not have.
    """

    def __init__(
        self,
        strategies: StrategyCalls,
        ids: Sequence[int],
        placeholder: int | None,
        model: ModelInfo,
        *,
        states: Mapping[str, PromptStates] = MappingProxyType({}),
        outline: str | None = None,
    ) -> None:
        self._strategies = strategies
        self.gen = _begin_generation(torch.tensor([list(ids)]), placeholder, model)
        plan = plan_group(strategies, self.gen, KnownStates(states))
        if outline is not None and outline_plan(plan) != outline:
            raise StrategyRefused(OTHER_PLAN)
        self.kernels: Kernels = {}
        self.branches: tuple[Hashable, ...] = tuple(plan.branches)
        self.readouts = frozenset(
            (layer, readout.final_norm)
            for readout in plan.edits_of(Readout)
            for layer in readout_layers(readout, model.depth)
        )
        self._plan = plan
        self._placeholder = placeholder
        self._prompts: dict[int, MemberPrompt] = {}
        self._tokens: list[Tensor] = []

    def find_prompt(self, index: int, ids: Sequence[int]) -> MemberPrompt:
        """Return the prompt of a member, whose token ids are looked at once."""
        if index not in self._prompts:
            self._prompts[index] = MemberPrompt(torch.tensor(list(ids)), self._placeholder)
        return self._prompts[index]

    def _find_edits(self, index: int, kind: type[EditKind]) -> list[EditKind]:
        """Return the edits of a kind in a member, in the order of the stack; 0 is main."""
        key = MAIN if index == 0 else self.branches[index - 1]
        return [edit for edit in self._plan.edits_of(kind) if edit.branch == key]

    def plan_edits(
        self, place: Membership, prompt: MemberPrompt, rows: slice, start: int, device: torch.device
    ) -> list[PlannedEdit]:
        """Return the edits of a member that apply in a step.

        Args:
            place: The member's.
            prompt: Its prompt.
            rows: Its rows in the step.
            start: Position of the first of them, counted from the start of the prompt.
            device: Where the model runs.
        """
        stop = start + rows.stop - rows.start
        image = prompt.find_image(start, stop)[None].to(device)
        edits = self._find_edits(place.index, HiddenEdit)
        selected = [(edit, prompt.select(edit.positions, edit.when, start, stop)) for edit in edits]
        return [
            PlannedEdit(place.group, edit, self.gen, self.kernels, rows, applies[None].to(device), image)
            for edit, applies in selected
            if bool(applies.any())
        ]

    def plan_attention(
        self, place: Membership, prompt: MemberPrompt, rows: slice, start: int, device: torch.device
    ) -> list[PlacedEdit]:
        """Return the attention edits of a member that apply in a step; as `plan_edits`."""
        stop = start + rows.stop - rows.start
        edits = self._find_edits(place.index, AttentionEdit)
        selected = [(edit, prompt.select(edit.queries, edit.when, start, stop)) for edit in edits]
        return [
            PlacedEdit(edit, queries.to(device), prompt.find_keys(edit.keys, stop).to(device))
            for edit, queries in selected
            if bool(queries.any())
        ]

    @property
    def length(self) -> int:
        """Tokens chosen so far."""
        return len(self._tokens)

    def combine_terms(self, logits: Sequence[Tensor], readouts: Mapping[tuple[int, bool], Tensor]) -> Any:
        """Return what the terms of the next token add up to, for one kernel call; None where they leave main as it is.

        Args:
            logits: Raw logits `[vocab]` of main, then of each branch.
            readouts: Logits `[vocab]` of the layers of `readouts`.

        Raises:
            PluginRejected: Terms of a strategy do not fit.
        """
        main, *branches = (row[None, None] for row in logits)
        tokens = torch.stack(self._tokens)[None] if self._tokens else torch.empty(1, 0, dtype=torch.long)
        of_branches = dict(zip(self.branches, branches, strict=True))
        of_layers = {layer: row[None, None] for layer, row in readouts.items()}
        self.gen.forward = Forward(main, of_branches, self.length, readouts=of_layers, tokens=tokens.to(main.device))
        terms = self._strategies.call("terms", self.gen)
        try:
            return fusion.build_combination(self.gen, [term for values in terms.values() for term in values])
        except InputError:
            blame_misfit(self.gen, terms)
            raise

    def note_token(self, token: Tensor) -> None:
        """Note the token, int64 of no dimension, that was chosen for main."""
        self._tokens.append(token)


class StackCache:
    """Strategies by the stacks that requests name, each built once."""

    def __init__(self) -> None:
        self._built: dict[str, StrategyCalls] = {}

    def find(self, stack: Mapping[str, Any]) -> StrategyCalls:
        """Return the strategies of a stack in plain values."""
        key = repr(stack)
        if key not in self._built:
            self._built[key] = StrategyCalls(Stack.of(dict(stack)).strategies)
        return self._built[key]


def _begin_generation(ids: Tensor, placeholder: int | None, model: ModelInfo) -> Generation:
    """Return what travels through the hooks of one group; it knows the prompt, and no picture."""
    image_mask = torch.zeros_like(ids, dtype=torch.bool) if placeholder is None else ids == placeholder
    services = Services(measure=fusion.ForwardStatistics, find_finished=_none_has_ended)
    prompt = Prompt(
        inputs={"input_ids": ids},
        ids=ids,
        attention_mask=torch.ones_like(ids),
        image_mask=image_mask,
        has_image=bool(image_mask.any()),
        image_token=placeholder,
        pictures_missing="The engine runs prompts apart from the pictures that they were made of.",
    )
    return Generation(prompt, model, services=services)


def _none_has_ended(generated: Tensor) -> Tensor:
    """A group whose answer has ended is not sampled any more."""
    return torch.zeros(len(generated), dtype=torch.bool, device=generated.device)
