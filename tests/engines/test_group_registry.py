"""Which members of groups may run next: pure arithmetic on what a scheduler knows of its requests."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from lvlm_guard.engines.vllm import groups
from lvlm_guard.engines.vllm.configuration import refuse_configuration, refuse_parameters
from lvlm_guard.engines.vllm.groups import GroupRegistry, Membership
from lvlm_guard.errors import ModeRefused


@dataclass(eq=False)
class FakeRequest:
    request_id: str
    place: Membership | None = None
    num_tokens: int = 10
    num_computed_tokens: int = 0
    num_output_placeholders: int = 0
    num_prompt_tokens: int = 10
    max_tokens: int = 6
    finished: bool = False
    sampling_params: SimpleNamespace = field(init=False)

    def __post_init__(self):
        arguments = None if self.place is None else self.place.as_arguments()
        self.sampling_params = SimpleNamespace(extra_args=arguments)

    def is_finished(self):
        return self.finished


def group_of(*computed, name="g"):
    registry = GroupRegistry()
    members = [
        FakeRequest(f"{name}{index}", Membership(name, index, len(computed)), num_computed_tokens=done)
        for index, done in enumerate(computed)
    ]
    for member in members:
        group = registry.add(member)
    return registry, group, members


def names(requests):
    return [request.request_id for request in requests]


def test_a_place_survives_the_extra_arguments():
    stack = {"stack": [{"name": "vcd", "params": {}}]}
    place = Membership("g", 0, 3, stack, plan="x", probes=2, probe="main", is_edited=True)
    assert groups.read_membership(SimpleNamespace(extra_args={"other": 1, **place.as_arguments()})) == place
    assert groups.read_membership(SimpleNamespace(extra_args=None)) is None
    assert groups.read_membership(SimpleNamespace(extra_args={"other": 1})) is None


def test_a_group_is_ready_when_every_member_runs_and_is_one_token_from_its_end():
    _, group, members = group_of(9, 9)
    assert groups.is_ready(group, lambda _: True)
    assert not groups.is_ready(group, lambda request: request.request_id != "g1")
    members[1].num_computed_tokens = 8
    assert not groups.is_ready(group, lambda _: True)


def test_a_group_without_a_member_is_not_ready():
    registry, group, _ = group_of(9, 9)
    del group.members[1]
    assert not group.is_complete
    assert not groups.is_ready(group, lambda _: True)
    group.arrival -= 100
    assert registry.overdue(60) == [group]
    assert registry.overdue(200) == []


@pytest.mark.parametrize(("computed", "new", "allowed"), [(0, 10, 9), (0, 4, 4), (8, 2, 1), (9, 1, 0), (5, 5, 4)])
def test_members_that_wait_stop_one_token_before_their_end(computed, new, allowed):
    assert groups.hold_back(FakeRequest("a"), computed, new) == allowed


def test_placeholders_of_a_step_in_flight_count_as_tokens():
    request = FakeRequest("a", num_computed_tokens=10, num_output_placeholders=1)
    assert groups.tokens_left(request) == 1
    assert groups.hold_back(request, 10, 1) == 0


def test_blocks_are_counted_whole():
    _, group, members = group_of(8, 9)
    assert groups.next_blocks(group, 4) == 1
    assert groups.blocks_to_admit(members, 4) == 6
    assert groups.blocks_at_most(members, 4) == 8


def test_room_is_made_from_the_tail_by_whole_groups():
    registry, spared, first = group_of(9, 9)
    second = [FakeRequest(f"h{index}", Membership("h", index, 2)) for index in range(2)]
    for member in second:
        registry.add(member)
    plain = FakeRequest("plain")
    assert names(groups.find_victims([*first, second[0], plain, second[1]], registry, spared)) == ["h0", "h1"]
    assert names(groups.find_victims([*first, *second, plain], registry, spared)) == ["plain"]
    assert names(groups.find_victims([*second, *first], registry, spared)) == ["h0", "h1"]
    assert groups.find_victims(first, registry, spared) == []


def test_a_forgotten_group_leaves_nothing_behind():
    registry, group, _ = group_of(9, 9)
    registry.remove(group)
    assert len(registry) == 0
    assert registry.find("g0") is None
    assert registry.find("g1") is None


def test_a_group_waits_for_its_probes_and_they_are_found_alone():
    registry = GroupRegistry()
    members = [FakeRequest(f"g{index}", Membership("g", index, 2, probes=1)) for index in (0, 1)]
    probe = FakeRequest("p", Membership("g", 0, 2, probes=1, probe="main"))
    group = registry.add(members[0])
    registry.add(members[1])
    assert not group.is_complete
    assert registry.add(probe) is group
    assert group.is_complete
    assert not group.is_probed
    assert registry.find("p") is None
    assert list(group) == members
    probe.finished = True
    assert group.is_probed


def test_ids_of_branches_are_told_from_those_of_users():
    assert groups.is_branch(groups.name_branch("g", 1))
    assert groups.is_branch(groups.name_probe("g", 1))
    assert groups.name_branch("g", 1) != groups.name_probe("g", 1)
    assert not groups.is_branch("7-1a2b3c4d")


def configuration(**changes):
    config = SimpleNamespace(
        speculative_config=None,
        kv_transfer_config=None,
        use_v2_model_runner=False,
        parallel_config=SimpleNamespace(
            pipeline_parallel_size=1, tensor_parallel_size=1, data_parallel_size=1, prefill_context_parallel_size=1
        ),
        watermark_config=None,
        scheduler_config=SimpleNamespace(policy="fcfs", enable_chunked_prefill=True, async_scheduling=False),
    )
    for path, value in changes.items():
        owner, _, name = path.rpartition("__")
        setattr(getattr(config, owner) if owner else config, name, value)
    return config


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"speculative_config": object()}, "speculative decoding"),
        ({"parallel_config__pipeline_parallel_size": 2}, "pipeline parallelism"),
        ({"parallel_config__tensor_parallel_size": 2}, "tensor parallelism"),
        ({"parallel_config__data_parallel_size": 2}, "data parallelism"),
        ({"scheduler_config__policy": "priority"}, "priority scheduling"),
        ({"scheduler_config__async_scheduling": True}, "asynchronous scheduling is on"),
        ({"scheduler_config__enable_chunked_prefill": False}, "prefill without chunks"),
        ({"kv_transfer_config": object()}, "transfer of the cache"),
        ({"parallel_config__prefill_context_parallel_size": 2}, "context parallelism"),
        ({"watermark_config": object()}, "watermarking"),
    ],
)
def test_engines_in_which_groups_would_be_wrong_are_refused(change, name):
    refuse_configuration(configuration(), is_asynchronous=False)
    with pytest.raises(ModeRefused, match=name):
        refuse_configuration(configuration(**change), is_asynchronous=False)


def test_a_scheduler_made_for_asynchronous_scheduling_is_refused_without_it():
    refuse_configuration(configuration(scheduler_config__async_scheduling=True), is_asynchronous=True)
    with pytest.raises(ModeRefused, match="asynchronous scheduling is off"):
        refuse_configuration(configuration(), is_asynchronous=True)


def parameters(**changes):
    return SimpleNamespace(**{"n": 1, "structured_outputs": None, "seed": None} | changes)


@pytest.mark.parametrize(
    ("change", "name"), [({"n": 2}, "n above 1"), ({"structured_outputs": object()}, "structured output")]
)
def test_parameters_that_groups_cannot_have_are_refused(change, name):
    refuse_parameters(parameters(), on_cpu=True)
    with pytest.raises(ModeRefused, match=name):
        refuse_parameters(parameters(**change), on_cpu=False)


def test_seeds_are_refused_on_a_cpu_alone():
    refuse_parameters(parameters(seed=1), on_cpu=False)
    with pytest.raises(ModeRefused, match="seed"):
        refuse_parameters(parameters(seed=1), on_cpu=True)
