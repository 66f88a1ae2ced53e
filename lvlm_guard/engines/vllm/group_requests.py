"""A guarded request as requests of vLLM: main's with the user's parameters, the branches' with what they share of them."""

from __future__ import annotations

import dataclasses
import uuid
from dataclasses import dataclass

from vllm import SamplingParams
from vllm.inputs import EngineInput

from lvlm_guard.engines.vllm import groups
from lvlm_guard.engines.vllm.configuration import refuse_parameters
from lvlm_guard.engines.vllm.groups import Membership, name_branch, name_probe
from lvlm_guard.engines.vllm.prompts import PromptReader, write_prompt
from lvlm_guard.engines.vllm.translation import DescribedGroup, describe_group
from lvlm_guard.errors import InputError
from lvlm_guard.host.plugins import StrategyCalls
from lvlm_guard.host.stack import Stack
from lvlm_guard.strategy.branches import MAIN
from lvlm_guard.strategy.prompt import ModelInfo


@dataclass(frozen=True)
class EngineLimits:
    """What a group must fit into.

    Args:
        model_length: Longest prompt and answer.
        sequences: Requests that run at once.
        batched_tokens: Tokens of a step.
        block_size: Tokens of a cache block.
        blocks: Blocks of the cache, None where that is not known.
        on_cpu: Whether the engine runs on a CPU.
        reads_layers: Whether the model runs without compilation, so that its layers can be read and edited.
    """

    model_length: int
    sequences: int
    batched_tokens: int
    block_size: int
    blocks: int | None
    on_cpu: bool
    reads_layers: bool


@dataclass(frozen=True)
class MemberRequest:
    """One request of a group, by its id, rendered prompt and parameters."""

    id: str
    prompt: EngineInput
    parameters: SamplingParams


class GroupBuilder:
    """Makes groups of requests.

    Args:
        reader: Reads rendered prompts.
        limits: What a group must fit into.
        model: The model that answers, as strategies may know it.
    """

    def __init__(self, reader: PromptReader, limits: EngineLimits, model: ModelInfo) -> None:
        self._reader, self._limits, self._model = reader, limits, model

    def build(self, stack: Stack, prompt: EngineInput, parameters: SamplingParams) -> list[MemberRequest]:
        """Return main's request, whose id is empty, then those of the branches, then those of prompts that are run for their states.

        Raises:
            Refused: The stack, the prompt or the parameters cannot be guarded here.
            InputError: The group does not fit into the engine.
        """
        refuse_parameters(parameters, on_cpu=self._limits.on_cpu)
        request = self._reader.read_request(prompt)
        described = describe_group(
            request, StrategyCalls(stack.strategies), self._model, reads_layers=self._limits.reads_layers
        )
        tokens = self._limit_tokens(described, parameters)
        group, size, probes = uuid.uuid4().hex, 1 + len(described.branches), len(described.probes)
        requests = []
        for index, (key, member) in enumerate([(MAIN, described.main), *described.branches.items()]):
            place = Membership(group, index, size, probes=probes, is_edited=key in described.edited)
            rendered = write_prompt(member, prompt, f"{group}-{index}" if place.is_edited else None)
            if index == 0:
                place = dataclasses.replace(place, stack=stack.to_dict(), plan=described.plan)
                requests.append(MemberRequest("", rendered, _mark(parameters, tokens, place)))
            else:
                requests.append(MemberRequest(name_branch(group, index), rendered, _follow(tokens, place)))
        for index, (name, member) in enumerate(described.probes.items()):
            place = Membership(group, index, size, probes=probes, probe=name)
            requests.append(MemberRequest(name_probe(group, index), write_prompt(member, prompt), _follow(1, place)))
        return requests

    def _limit_tokens(self, group: DescribedGroup, parameters: SamplingParams) -> int:
        """Return how many tokens an answer may have.

        Raises:
            InputError: The group does not fit.
        """
        lengths = [len(member.ids) for member in (group.main, *group.branches.values())]
        room = self._limits.model_length - max(lengths)
        tokens = room if parameters.max_tokens is None else parameters.max_tokens
        longest_probe = max((len(probe.ids) for probe in group.probes.values()), default=0)
        if longest_probe >= self._limits.model_length:
            raise InputError(
                f"A prompt that the stack runs beforehand has {longest_probe} tokens, and this engine takes "
                f"{self._limits.model_length - 1}: shorten it, or raise max_model_len."
            )
        if tokens > room or room <= 0:
            raise InputError(
                f"The longest prompt of the group has {max(lengths)} tokens, which with {max(tokens, 1)} new ones is more than the "
                f"{self._limits.model_length} of this engine: ask for fewer, or raise max_model_len."
            )
        self._check_fit(lengths, tokens)
        return tokens

    def _check_fit(self, lengths: list[int], tokens: int) -> None:
        most = min(self._limits.sequences, self._limits.batched_tokens)
        if len(lengths) > most:
            raise InputError(
                f"The group has {len(lengths)} members, and the engine runs {most} at once: raise max_num_seqs and "
                "max_num_batched_tokens."
            )
        needed = sum(groups.count_blocks(length + tokens, self._limits.block_size) for length in lengths)
        if self._limits.blocks is not None and needed > self._limits.blocks:
            raise InputError(
                f"The group needs {needed} cache blocks at its longest, and the cache has {self._limits.blocks}: ask for fewer tokens, "
                "or give it more memory."
            )


def _mark(parameters: SamplingParams, tokens: int, place: Membership) -> SamplingParams:
    """Return main's parameters with its place in the group."""
    marked = parameters.clone()
    marked.max_tokens = tokens
    marked.extra_args = {**(parameters.extra_args or {}), **place.as_arguments()}
    return marked


def _follow(tokens: int, place: Membership) -> SamplingParams:
    """Return the parameters of a branch, which takes main's tokens and ends with it."""
    return SamplingParams(
        temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False, extra_args=place.as_arguments()
    )
