"""Combination round the sampler of an engine: main's rows get combined logits, and branches the token that main got."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lvlm_guard.arithmetic.joining import combine_side_by_side
from lvlm_guard.engines.vllm.groups import Membership
from lvlm_guard.engines.vllm.live_group import LiveGroup
from lvlm_guard.errors import GuardError, describe_error

ALONE = "Of {size} members only {rows} were sampled in one step, so nothing could be combined."
NOT_FINITE = (
    "NonFiniteLogits: The logits of the model or of the stack are NaN, infinite or all removed. Check the model in this dtype without "
    "a guard, then what the strategies restrict and add."
)


@dataclass
class GuardCounts:
    """What happened round the sampler since the engine started.

    Args:
        groups: Groups that were sampled at least once.
        steps: Tokens that were chosen for groups.
        alone: Steps in which some members of a group were sampled without the others; each ended its group with an error.
        failed: Groups that ended with an error here.
    """

    groups: int = 0
    steps: int = 0
    alone: int = 0
    failed: int = 0

    def as_dict(self) -> dict[str, int]:
        """Return the counts by name."""
        return dict(vars(self))


@dataclass(frozen=True)
class SampledMember:
    """A row that is sampled, of a member of a group."""

    row: int
    place: Membership


@dataclass
class GroupSampler:
    """Combines the rows of groups before an engine's sampler, and shares out main's token after it.

    Args:
        open_group: Makes what is asked for terms, from the place of main's request and its id.
        read_layers: Reads layer outputs at a row of the step, whose logits `[vocab]` are passed too.

    Attributes:
        counts: What happened so far.
        failures: Why groups failed in the last step, by group.
    """

    open_group: Callable[[Membership, str], LiveGroup]
    read_layers: Callable[[int, Tensor, Collection[tuple[int, bool]]], Mapping[tuple[int, bool], Tensor]]
    counts: GuardCounts = field(default_factory=GuardCounts)
    failures: dict[str, str] = field(default_factory=dict)
    _live: dict[str, LiveGroup] = field(default_factory=dict)
    _sampled: dict[str, list[SampledMember]] = field(default_factory=dict)
    _broken: dict[str, str] = field(default_factory=dict)

    def combine(self, logits: Tensor, members: Mapping[str, Membership], rows: Mapping[str, int]) -> Tensor:
        """Return logits `[rows, vocab]` in fp32 in which main's row of each group is the combined one.

        Args:
            logits: Raw logits of all rows of the step; left as they are.
            members: Places of the requests of groups that are sampled in this step, by id.
            rows: Their rows, by id.
        """
        self._sampled, self.failures = {}, {}
        by_group: dict[str, dict[int, tuple[str, Membership]]] = {}
        for name, place in members.items():
            by_group.setdefault(place.group, {})[place.index] = (name, place)
        combined, combinations = logits.float().clone(), {}
        for group, named_places in by_group.items():
            combinations[group] = self._try_group(group, named_places, combined, rows)
        self._write(combined, combinations)
        self._check_finite(logits, combined)
        return combined

    def share_tokens(self, tokens: Tensor) -> None:
        """Give the branches of each group main's token; `tokens` `[rows, 1]` are changed in place."""
        sampled, self._sampled = self._sampled, {}
        for group, members in sampled.items():
            chosen = tokens[members[0].row, 0].clone()
            for member in members[1:]:
                tokens[member.row, 0] = chosen
            self._live[group].note_token(chosen.long())
            self.counts.steps += 1

    def open(self, place: Membership, name: str) -> LiveGroup | None:
        """Open a group by main's place and id, once; None where it cannot be, and fails when it is sampled."""
        if place.group not in self._live and place.group not in self._broken:
            try:
                self._live[place.group] = self.open_group(place, name)
                self.counts.groups += 1
            except Exception as error:  # noqa: BLE001 - strategies are foreign code
                self._broken[place.group] = describe_error(error)
        return self._live.get(place.group)

    def find(self, group: str) -> LiveGroup | None:
        """Return a group that is open; None of another."""
        return self._live.get(group)

    def break_group(self, group: str, reason: str) -> None:
        """Let a group fail when it is sampled; the first reason counts."""
        self._live.pop(group, None)
        self._broken.setdefault(group, reason)

    def forget(self, group: str) -> None:
        """Forget a group that has ended."""
        self._live.pop(group, None)
        self._broken.pop(group, None)

    def _try_group(
        self, group: str, named_places: Mapping[int, tuple[str, Membership]], logits: Tensor, rows: Mapping[str, int]
    ) -> Any:
        """Return what the terms of one group add up to; strategies are foreign code, so their group fails, and no other."""
        try:
            return self._combine_group(group, named_places, logits, rows)
        except Exception as error:  # noqa: BLE001 - as above
            self._fail(group, describe_error(error))
            return None

    def _combine_group(
        self, group: str, named_places: Mapping[int, tuple[str, Membership]], logits: Tensor, rows: Mapping[str, int]
    ) -> Any:
        """Return what the terms of one group add up to, and note its rows."""
        size = next(iter(named_places.values()))[1].size
        if len(named_places) != size:
            self.counts.alone += 1
            self._fail(group, ALONE.format(size=size, rows=len(named_places)))
            return None
        ordered = [named_places[index] for index in range(size)]
        live = self.open(ordered[0][1], ordered[0][0])
        if live is None:
            self._fail(group, self._broken[group])
            return None
        members = [SampledMember(rows[name], place) for name, place in ordered]
        main = members[0].row
        readouts = self.read_layers(main, logits[main], live.readouts) if live.readouts else {}
        combination = live.combine_terms([logits[member.row] for member in members], readouts)
        self._sampled[group] = members
        return combination

    def _write(self, logits: Tensor, combinations: Mapping[str, Any]) -> None:
        """Put the combined logits of all groups into main's rows."""
        changed = {group: value for group, value in combinations.items() if value is not None}
        if not changed:
            return
        try:
            results = combine_side_by_side(list(changed.values()))
        except GuardError as error:
            for group in changed:
                self._fail(group, describe_error(error))
            return
        for group, result in zip(changed, results, strict=True):
            logits[self._sampled[group][0].row] = result[0, 0]

    def _check_finite(self, raw: Tensor, combined: Tensor) -> None:
        """Let groups fail in which a row, raw or combined, has no finite best token; the device is waited for once."""
        members = [(group, member) for group, named_places in self._sampled.items() for member in named_places]
        if not members:
            return
        rows = [member.row for _, member in members]
        finite = raw[rows].amax(-1).isfinite() & combined[rows].amax(-1).isfinite()
        for (group, _), is_finite in zip(members, finite.tolist(), strict=True):
            if not is_finite and group not in self.failures:
                self._fail(group, NOT_FINITE)

    def _fail(self, group: str, reason: str) -> None:
        self.failures[group] = reason
        self._sampled.pop(group, None)
        self.counts.failed += 1


def find_sampled(names: Sequence[str], discarded: Sequence[bool]) -> dict[str, int]:
    """Return the row of each request that a step samples; rows in the middle of a prompt are discarded after the sampler."""
    return {name: row for row, (name, skips) in enumerate(zip(names, discarded, strict=True)) if not skips}
