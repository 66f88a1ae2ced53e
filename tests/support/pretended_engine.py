"""An engine of few lines: every member of a group is a prompt that is run whole at each step, and rows come in any order."""

from __future__ import annotations

import uuid
from typing import Any

import torch
from torch import Tensor

from lvlm_guard.engines.vllm.groups import Membership, name_branch
from lvlm_guard.engines.vllm.live_group import LiveGroup, StackCache
from lvlm_guard.engines.vllm.sampling import GroupSampler, find_sampled
from lvlm_guard.engines.vllm.translation import DescribedGroup, describe_group, describe_model
from lvlm_guard.guard import Guard
from lvlm_guard.host.plugins import StrategyCalls
from lvlm_guard.host.stack import Stack
from lvlm_guard.request.requests import Request


class PretendedEngine:
    """Answers groups greedily with a model of transformers.

    Args:
        guard: Its model and processor.
        end: Id of the token that ends an answer.
    """

    def __init__(self, guard: Guard, end: int) -> None:
        self._guard, self._end = guard, end
        self._info = describe_model(guard.model.config, guard.processor.tokenizer)
        self._stacks = StackCache()
        self._members: dict[str, tuple[Membership, list[int], dict[str, Tensor]]] = {}
        self._groups: dict[str, DescribedGroup] = {}
        self.sampler = GroupSampler(self._open, self._read_nothing)

    def add(self, inputs: dict[str, Any], stack: str) -> str:
        """Queue a request; returns the name of its main."""
        guard, chosen = self._guard, Stack.of(stack)
        pictures = guard._recent_pictures.find(inputs)
        request = Request(dict(inputs), {}, guard.model.config, guard.processor, pictures)
        group = describe_group(request, StrategyCalls(chosen.strategies), self._info)
        name, size = uuid.uuid4().hex, 1 + len(group.branches)
        self._groups[name] = group
        for index, member in enumerate((group.main, *group.branches.values())):
            place = Membership(name, index, size, chosen.to_dict() if index == 0 else None)
            own = name_branch(name, index) if index else name
            self._members[own] = (place, list(member.ids), dict(member.inputs))
        return name

    def run(self, steps: int, skipping: int | None = None) -> dict[str, list[int]]:
        """Run steps for all groups, rows in reverse order; returns the answers by name of main.

        Args:
            steps: How many.
            skipping: Row that is in the middle of its prompt in every step, and is discarded.
        """
        answers: dict[str, list[int]] = {place.group: [] for place, _, _ in self._members.values()}
        for _ in range(steps):
            names = list(reversed(self._members))
            if not names:
                break
            logits = torch.stack([self._run(name) for name in names])
            discarded = [index == skipping for index in range(len(names))]
            rows = find_sampled(names, discarded)
            places = {name: self._members[name][0] for name in rows}
            combined = self.sampler.combine(logits, places, rows)
            tokens = combined.argmax(-1, keepdim=True)
            self.sampler.share_tokens(tokens)
            self._note(names, tokens, answers)
        return answers

    def _note(self, names: list[str], tokens: Tensor, answers: dict[str, list[int]]) -> None:
        for name, token in zip(names, tokens[:, 0].tolist(), strict=True):
            place, ids, _ = self._members[name]
            ids.append(token)
            if place.index == 0 and place.group not in self.sampler.failures:
                answers[place.group].append(token)
        ended = {group for group, answer in answers.items() if answer[-1:] == [self._end]} | set(self.sampler.failures)
        self._members = {name: member for name, member in self._members.items() if member[0].group not in ended}

    @torch.no_grad()
    def _run(self, name: str) -> Tensor:
        _, ids, inputs = self._members[name]
        logits: Tensor = self._guard.model(input_ids=torch.tensor([ids]), **inputs).logits
        return logits[0, -1]

    @staticmethod
    def _read_nothing(*_: Any) -> dict[tuple[int, bool], Tensor]:
        raise AssertionError("no strategy of these tests reads layers")

    def _open(self, place: Membership, name: str) -> LiveGroup:
        assert place.stack is not None
        ids = self._groups[name].main.ids
        image = self._guard.model.config.image_token_id
        return LiveGroup(self._stacks.find(place.stack), ids, image, self._info)
