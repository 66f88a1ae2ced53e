"""The scheduler of vLLM that admits, samples, preempts and ends the requests of a group as one.

It overrides private hooks of the scheduler of vLLM 0.32; the stress test of the groups is the contract with it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from lvlm_guard.engines.vllm import groups
from lvlm_guard.engines.vllm.configuration import refuse_configuration
from lvlm_guard.engines.vllm.groups import GroupRegistry, RequestGroup
from lvlm_guard.errors import ModelRefused

WAIT = 60.0
"""Seconds that a group waits for members that do not come."""
NEVER_FITS = "The group needs {needed} cache blocks at its longest, and the cache has {blocks}: ask for fewer tokens, or give it more memory."
INCOMPLETE = "Members of the group did not come within {seconds:.0f} seconds."
PARTNER = "A branch of the group ended before its main request."


class GangScheduler(Scheduler):
    """The scheduler with groups kept in step.

    In every step either all members of a group are sampled, or none. Members run their prompts as any request does, but stop one
    token before the end until all have come there. Groups that can be sampled come first in a step, and the blocks they need are
    made free before, from the tail and by whole groups, so that nothing preempts one member in the middle of a step.
    """

    running: list[Any]
    is_asynchronous = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        refuse_configuration(self.vllm_config, is_asynchronous=self.is_asynchronous)
        if len(self.kv_cache_config.kv_cache_groups) > 1:
            raise ModelRefused(
                "Groups of requests in vLLM run on models whose layers share one kind of cache; this one has "
                f"{len(self.kv_cache_config.kv_cache_groups)} kinds."
            )
        self.groups = GroupRegistry()
        self.group_preemptions = 0
        self.wait_seconds = WAIT
        self._stepping: set[str] = set()
        self._admitting: RequestGroup | None = None
        self._made_room = False
        self._failures: dict[str, str] = {}
        self._ended: list[str] = []

    def add_request(self, request: Request) -> None:
        """Queue a request, and note its group."""
        super().add_request(request)
        group = self.groups.add(request)
        if group is not None and group.is_complete:
            needed, blocks = groups.blocks_at_most(group, self.block_size), self._blocks_in_all
            if needed > blocks:
                self._failures[group.id] = NEVER_FITS.format(needed=needed, blocks=blocks)

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        """Return the next step, in which each group is sampled as a whole or not at all."""
        self._made_room = False
        if self.groups:
            self._preempt_torn_groups()
            self._choose_stepping_groups()
        output = super().schedule(*args, **kwargs)
        output.guard_ended, self._ended = self._ended, []  # our worker reads it
        return output

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        """Update requests, end the partners of those that ended, and pass on what the main requests got."""
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        if not self.groups:
            return outputs
        self._failures |= getattr(model_runner_output, "guard_failures", {})
        for group in self.groups.overdue(self.wait_seconds):
            self._failures.setdefault(group.id, INCOMPLETE.format(seconds=self.wait_seconds))
        for name, reason in self._failures.items():
            self._report_failure(name, reason, outputs)
        self._failures = {}
        self._end_partners(outputs)
        self._drop_branches(outputs)
        return outputs

    def finish_requests(self, request_ids: str | Iterable[str] | None, finished_status: RequestStatus) -> list[Request]:
        """End requests, and their partners with them."""
        names = (
            {request_ids}
            if isinstance(request_ids, str)
            else set(self.requests if request_ids is None else request_ids)
        )
        for name in list(names):
            if (group := self.groups.find(name)) is not None:
                names |= {request.request_id for request in (*group, *group.probes.values())}
                self._forget(group)
        return super().finish_requests(names, finished_status)

    def _handle_blocked_waiting_request(self, request: Request) -> bool:
        """Admit a group where all of it fits, and nothing else while one is admitted in part."""
        if not super()._handle_blocked_waiting_request(request):
            return False
        group = self.groups.find(request.request_id)
        if self._admitting is not None:
            return group is self._admitting
        if group is None:
            return True
        if self._made_room or not self._may_admit(group):
            return False
        self._admitting = group
        return True

    def _may_admit(self, group: RequestGroup) -> bool:
        waiting = (RequestStatus.WAITING, RequestStatus.PREEMPTED)
        if not group.is_probed or group.id in self._failures:
            return False
        if any(request.status not in waiting for request in group):
            return False
        if any(request.num_stale_output_tokens and not request.drop_stale_output for request in group):
            return False
        slots = self.max_num_running_reqs - len(self.running)
        return group.size <= slots and groups.blocks_to_admit(group, self.block_size) <= self._blocks_left

    def _reserve_prefill_lookahead(self, request: Request, num_computed_tokens: int, num_new_tokens: int) -> int:
        """Hold a member one token before its end while its group is not sampled."""
        new = super()._reserve_prefill_lookahead(request, num_computed_tokens, num_new_tokens)
        group = self.groups.find(request.request_id)
        if group is None or group.id in self._stepping:
            return new
        return groups.hold_back(request, num_computed_tokens, new)

    def _get_local_prefix_cache_hit(self, request: Request) -> Any:
        """Give back a block of a hit that would leave one token, which a member may not run before its group is sampled."""
        blocks, hit, boundary, diverged = super()._get_local_prefix_cache_hit(request)
        if self.groups.find(request.request_id) is None or request.num_tokens - hit > 1:
            return blocks, hit, boundary, diverged
        shorter = max(hit - 1, 0) // self.block_size * self.block_size
        return self.kv_cache_manager.truncate_computed_blocks(blocks, shorter), shorter, boundary, diverged

    def _preempt_request(self, request: Request, timestamp: float, drop_stale_output: bool = False) -> None:
        """Preempt a request, and note that its group is torn."""
        super()._preempt_request(request, timestamp, drop_stale_output)
        if (group := self.groups.find(request.request_id)) is not None:
            group.is_torn = True

    def _preempt_torn_groups(self) -> None:
        """Preempt what still runs of groups that lost a member, so that they hold no blocks while they wait."""
        for group in [group for group in self.groups.groups.values() if group.is_torn]:
            self._preempt([request for request in self.running if request in group.members.values()])
            group.is_torn = False
            self.group_preemptions += 1
            if group is self._admitting:
                self._admitting = None

    def _choose_stepping_groups(self) -> None:
        """Choose which groups are sampled in this step, make room for them, and put them first."""
        self._stepping = set()
        if self._admitting is not None and all(map(_is_running, self._admitting)):
            self._admitting = None
        budget, needed = self.max_num_scheduled_tokens, 0
        for group in list(self.groups.groups.values()):
            if group.size > budget or not groups.is_ready(group, _is_running):
                continue
            blocks = groups.next_blocks(group, self.block_size)
            if self._make_room(group, needed + blocks):
                self._stepping.add(group.id)
                budget, needed = budget - group.size, needed + blocks
        self.running.sort(key=lambda request: not self._is_stepping(request))

    def _make_room(self, group: RequestGroup, needed: int) -> bool:
        """Preempt from the tail until that many blocks are free; groups that were chosen before are left alone."""
        while self._blocks_left < needed:
            candidates = [request for request in self.running if not self._is_stepping(request)]
            victims = groups.find_victims(candidates, self.groups, group)
            if not victims or not all(map(self._request_blocks_can_be_freed, victims)):
                return False
            self._preempt(victims)
            if (torn := self.groups.find(victims[0].request_id)) is not None:
                torn.is_torn = False
                self.group_preemptions += 1
                self._admitting = None if torn is self._admitting else self._admitting
        return True

    def _is_stepping(self, request: Request) -> bool:
        group = self.groups.find(request.request_id)
        return group is not None and group.id in self._stepping

    def _preempt(self, requests: Iterable[Request]) -> None:
        timestamp = time.monotonic()
        for request in reversed(list(requests)):
            self.running.remove(request)
            self._preempt_request(request, timestamp)
            self._made_room = True

    def _report_failure(self, name: str, reason: str, outputs: dict[int, EngineCoreOutputs]) -> None:
        """End a group, and let main's request end with an error in place of what this step gave it."""
        group = self.groups.groups.get(name)
        if group is None:
            return
        requests = (*group, *group.probes.values())
        self.finish_requests([request.request_id for request in requests], RequestStatus.FINISHED_ERROR)
        self._forget(group)
        if (main := group.main) is not None:
            failed = EngineCoreOutput(main.request_id, [], finish_reason=FinishReason.ERROR, stop_reason=reason)
            of_client = outputs.setdefault(main.client_index, EngineCoreOutputs(outputs=[]))
            of_client.outputs = [output for output in of_client.outputs if output.request_id != main.request_id]
            of_client.outputs.append(failed)

    def _end_partners(self, outputs: dict[int, EngineCoreOutputs]) -> None:
        """End the groups of requests that ended in this step: all of it where main did, with an error where a branch did."""
        for group in list(self.groups.groups.values()):
            ended = [request for request in group if request.is_finished()]
            if not ended:
                continue
            if group.main is not None and not group.main.is_finished():
                self._report_failure(group.id, PARTNER, outputs)
                continue
            self.finish_requests([request.request_id for request in group], RequestStatus.FINISHED_ABORTED)
            self._forget(group)

    def _drop_branches(self, outputs: dict[int, EngineCoreOutputs]) -> None:
        """Leave out what branches got: nobody waits for it."""
        for of_client in outputs.values():
            of_client.outputs = [output for output in of_client.outputs if not groups.is_branch(output.request_id)]

    def _forget(self, group: RequestGroup) -> None:
        self.groups.remove(group)
        self._ended.append(group.id)
        self._stepping.discard(group.id)
        if group is self._admitting:
            self._admitting = None

    @property
    def _blocks_left(self) -> int:
        return int(self.kv_cache_manager.block_pool.get_num_free_blocks())

    @property
    def _blocks_in_all(self) -> int:
        """Blocks of the cache, without the one that stands for nothing."""
        return int(self.kv_cache_manager.block_pool.num_gpu_blocks) - 1


def _is_running(request: Request) -> bool:
    return bool(request.status == RequestStatus.RUNNING)
