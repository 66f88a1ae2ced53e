"""Groups of requests that are admitted, sampled, preempted and ended as one: who belongs to which, and what may run next."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

NOTE = "lvlm_guard"
"""Key of the extra arguments of a request that say which group it belongs to."""
BRANCH = "lvlm-guard-branch"
"""How the ids of branches begin."""


class EngineRequest(Protocol):
    """What is used of a request of the engine."""

    request_id: str
    num_output_placeholders: int
    num_computed_tokens: int
    max_tokens: int
    sampling_params: Any

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and answer so far."""
        ...

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        ...


@dataclass(frozen=True)
class Membership:
    """Where a request belongs, as its extra arguments say.

    Args:
        group: Id of the group.
        index: 0 for main, then the branches in the order of the plan; of a probe, its number among the probes.
        size: Members of the group.
        stack: The stack as plain values; of main alone.
        plan: Outline of what the strategies planned when the group was made; of main alone.
        probes: Prompts that are run for their states before the group is.
        probe: The name of such a prompt; None of a member.
        is_edited: Whether hidden states or attention of this member are edited.
    """

    group: str
    index: int
    size: int
    stack: Mapping[str, Any] | None = None
    plan: str | None = None
    probes: int = 0
    probe: str | None = None
    is_edited: bool = False

    def as_arguments(self) -> dict[str, Any]:
        """Return extra arguments that say the same."""
        return {NOTE: {name: value for name, value in vars(self).items() if value is not None}}


def read_membership(sampling_params: Any) -> Membership | None:
    """Return where a request with these parameters belongs; None where it stands alone."""
    note = (getattr(sampling_params, "extra_args", None) or {}).get(NOTE)
    return None if note is None else Membership(**note)


@dataclass(eq=False)
class RequestGroup:
    """The requests of one group.

    Args:
        id: As its members say.
        size: Members when all are there.
        probes_in_all: Prompts that are run for their states before the members are.
        arrival: When its first member came, on the clock of `time.monotonic`.
        members: Those that are there, by index.
        probes: Likewise.
        is_torn: Whether a member was preempted while others may run.
    """

    id: str
    size: int
    probes_in_all: int = 0
    arrival: float = field(default_factory=time.monotonic)
    members: dict[int, Any] = field(default_factory=dict)
    probes: dict[int, Any] = field(default_factory=dict)
    is_torn: bool = False

    def __iter__(self) -> Iterator[Any]:
        return iter(self.members[index] for index in sorted(self.members))

    @property
    def is_complete(self) -> bool:
        """Whether all members and probes are there."""
        return len(self.members) == self.size and len(self.probes) == self.probes_in_all

    @property
    def is_probed(self) -> bool:
        """Whether all probes have run."""
        return self.is_complete and all(probe.is_finished() for probe in self.probes.values())

    @property
    def main(self) -> Any:
        """Main's request, None while it is not there."""
        return self.members.get(0)


class GroupRegistry:
    """Groups that live in a scheduler."""

    def __init__(self) -> None:
        self.groups: dict[str, RequestGroup] = {}
        self._by_request: dict[str, RequestGroup] = {}

    def __len__(self) -> int:
        return len(self.groups)

    def add(self, request: Any) -> RequestGroup | None:
        """Note a request that came; None where it stands alone. Probes are noted with their group, and found alone."""
        place = read_membership(request.sampling_params)
        if place is None:
            return None
        group = self.groups.setdefault(place.group, RequestGroup(place.group, place.size, place.probes))
        if place.probe is not None:
            group.probes[place.index] = request
            return group
        group.members[place.index] = request
        self._by_request[request.request_id] = group
        return group

    def find(self, request_id: str) -> RequestGroup | None:
        """Return the group of a request; None where it stands alone."""
        return self._by_request.get(request_id)

    def remove(self, group: RequestGroup) -> None:
        """Forget a group."""
        self.groups.pop(group.id, None)
        for request in group:
            self._by_request.pop(request.request_id, None)

    def overdue(self, seconds: float) -> list[RequestGroup]:
        """Return groups that have waited longer than that for members."""
        latest = time.monotonic() - seconds
        return [group for group in self.groups.values() if not group.is_complete and group.arrival < latest]


def name_branch(group: str, index: int) -> str:
    """Return the id of a branch's request."""
    return f"{BRANCH}-{group}-{index}"


def name_probe(group: str, index: int) -> str:
    """Return the id of a probe's request."""
    return f"{BRANCH}-{group}-probe-{index}"


def is_branch(request_id: str) -> bool:
    """Whether an id is that of a branch's request, or of a probe's: nobody waits for what it gets."""
    return request_id.startswith(BRANCH)


def tokens_left(request: EngineRequest) -> int:
    """Return the tokens that a request must run before its next one is sampled; 1 where the next step samples."""
    return request.num_tokens + request.num_output_placeholders - request.num_computed_tokens


def hold_back(request: EngineRequest, computed: int, new: int) -> int:
    """Return how many of `new` tokens a member may run that must not sample yet: it stops one token before its end."""
    end = request.num_tokens + request.num_output_placeholders
    return min(new, max(end - 1 - computed, 0))


def is_ready(group: RequestGroup, is_running: Callable[[Any], bool]) -> bool:
    """Whether the next step can sample all members of a group: all run, and each is one token from its end."""
    return group.is_complete and all(is_running(request) and tokens_left(request) == 1 for request in group)


def next_blocks(group: RequestGroup, block_size: int) -> int:
    """Return the cache blocks that the next token of each member needs."""
    return sum(request.num_computed_tokens % block_size == 0 for request in group.members.values())


def blocks_to_admit(requests: Iterable[EngineRequest], block_size: int) -> int:
    """Return the cache blocks that requests need for all of their tokens so far, and one more each."""
    return sum(count_blocks(request.num_tokens + 1, block_size) for request in requests)


def blocks_at_most(requests: Iterable[EngineRequest], block_size: int) -> int:
    """Return the cache blocks that requests need when their answers are as long as they may be."""
    return sum(count_blocks(request.num_prompt_tokens + request.max_tokens, block_size) for request in requests)


def count_blocks(tokens: int, block_size: int) -> int:
    """Return how many blocks hold that many tokens."""
    return -(-tokens // block_size)


def find_victims(running: Sequence[Any], registry: GroupRegistry, spared: RequestGroup) -> list[Any]:
    """Return the running requests to preempt next for a group: the last that is not of it, with all of its own group."""
    for request in reversed(running):
        group = registry.find(request.request_id)
        if group is not spared:
            return (
                [request]
                if group is None
                else [member for member in running if registry.find(member.request_id) is group]
            )
    return []
