"""Which prompts of a planned call go on from the prefixes of its look."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from lvlm_guard import anatomy
from lvlm_guard.arithmetic.effects import format_key
from lvlm_guard.call.interventions import Interventions
from lvlm_guard.call.looks.building import advance_prefixes, build_prefixes, build_row_request
from lvlm_guard.call.looks.checking import check_prefixes
from lvlm_guard.call.looks.dependence import describe_kind, find_reason, list_edits
from lvlm_guard.call.looks.memory import PrefixMemory
from lvlm_guard.call.looks.parts import build_gap_request, is_ragged
from lvlm_guard.call.looks.preparation import LookPreparation, SharedPrompt, build_text_inputs
from lvlm_guard.call.looks.rows import continue_all, list_rows
from lvlm_guard.call.plan import Edit, Sharing
from lvlm_guard.call.planning import PlannedCall
from lvlm_guard.errors import ModelRefused, ModeRefused
from lvlm_guard.forward.caches.copying import is_plain
from lvlm_guard.forward.prefixes import Prefix
from lvlm_guard.request.branch_inputs import differs
from lvlm_guard.strategy.branches import MAIN

LENGTHS = "the prompts differ in length, and this model has no room for a gap behind their beginning"


@dataclass(frozen=True, eq=False)
class SharedInterventions(Interventions):
    """What a call on a look does inside the layers, where parts of it ran with the prefixes.

    Args:
        effective: Identities of edits that changed something there.
    """

    effective: frozenset[int] = frozenset()

    def had_effect(self, edits: Sequence[Edit]) -> bool | None:
        """Return whether any of these edits changed anything, here or in a prefix."""
        in_call = super().had_effect(edits)
        return True if any(id(edit) in self.effective for edit in edits) else in_call


class RaggedRows(Exception):
    """Rows of several lengths cannot stand in one batch behind their prefixes.

    Args:
        reasons: Why a prompt cannot go on so, by `"main"` or the key of a branch.
    """

    def __init__(self, reasons: Mapping[Hashable, str]) -> None:
        super().__init__("rows of several lengths")
        self.reasons = reasons

    @property
    def main_runs_whole(self) -> bool:
        """Whether main itself can go on from no prefix, whatever the lengths."""
        return self.reasons[MAIN] not in ("", LENGTHS)


def describe_whole(reasons: Mapping[Hashable, str]) -> dict[str, str]:
    """Return what a report says where every prompt ran whole because main did."""
    return {
        key if key == MAIN else format_key(key): reason or "main's prompt ran whole" for key, reason in reasons.items()
    }


def share_prefixes(
    planned: PlannedCall, memory: PrefixMemory, *, checks: bool = True, advances: bool = False
) -> PlannedCall:
    """Let every prompt that can go on from a prefix; prefixes that are lacking are run first.

    Args:
        planned: The call as planned, for whole prompts.
        memory: The prefixes of its look.
        checks: Whether model and stack are tried first where they were not before.
        advances: Whether prefixes are run on to the end of the prompt first, as in a conversation of one row.

    Raises:
        ModeRefused: The call searches.
        RaggedRows: Rows of several lengths cannot all go on in one batch.
        ModelRefused: The model cannot go on from prefixes, or does not give the logits of whole prompts then.
    """
    _refuse_search(planned)
    keys = [MAIN, *planned.plan.branches]
    reasons = {key: _find_reason(planned, key) for key in keys}
    runs = _build_missing(planned, memory, [key for key in keys if not reasons[key]])
    if checks:
        _check(planned, memory)
    if advances:
        runs += _advance(planned, memory, [key for key in keys if not reasons[key]])
    shared: dict[Hashable, SharedPrompt] = {}
    for key in keys:
        prefix = (
            reasons[key] or memory.find(key, describe_kind(planned.plan, key)) or "it differs from prompt to prompt"
        )
        prompt = prefix if isinstance(prefix, str) else _continue(planned, key, prefix)
        reasons[key] = prompt if isinstance(prompt, str) else ""
        if not isinstance(prompt, str):
            shared[key] = prompt
    if len(shared) < len(keys) and is_ragged(planned.request):
        raise RaggedRows(reasons)
    _carry_rows(planned, shared)
    return _replace(planned, memory, shared, Sharing(reasons, runs))


def _refuse_search(planned: PlannedCall) -> None:
    if planned.search is not None:
        raise ModeRefused(
            f"{planned.searching!r} keeps candidates of its own, which cannot go on from a look: pass whole prompts to guard.generate."
        )


def _check(planned: PlannedCall, memory: PrefixMemory) -> None:
    """Try the first row, behind a gap where some row has one."""
    ragged = is_ragged(planned.request)
    if ragged in memory.tried:
        return
    row = build_row_request(planned.request, memory.opening)
    try:
        with memory.lock:
            behind = build_gap_request(row, memory.opening) if ragged else row
            check_prefixes(planned, (row, behind), memory, functools.partial(share_prefixes, checks=False))
            memory.tried.add(ragged)
    except ModelRefused:
        if not ragged:
            raise
        raise RaggedRows(dict.fromkeys((MAIN, *planned.plan.branches), LENGTHS)) from None


def _find_reason(planned: PlannedCall, key: Hashable) -> str:
    if planned.request is not planned.call.request and differs(planned.call.request, planned.request):
        names = " and ".join(repr(name) for name, changed in planned.input_edits.items() if changed)
        return f"{names} edits main's own inputs"
    limit = anatomy.rotation_limit(planned.main.module.config)
    if limit is not None and planned.main.length > limit:
        return f"this model turns positions by the length of a prompt beyond {limit}"
    return find_reason(planned.plan, key)


def _build_missing(planned: PlannedCall, memory: PrefixMemory, keys: Sequence[Hashable]) -> int:
    """Run the prefixes that are lacking, one thread at a time; return how many ran."""
    if not _list_missing(planned, memory, keys):
        return 0
    with memory.lock:
        missing = _list_missing(planned, memory, keys)
        if not missing:
            return 0
        return build_prefixes(planned, memory, missing)


def _advance(planned: PlannedCall, memory: PrefixMemory, keys: Sequence[Hashable]) -> int:
    """Run the prefixes on to the end of this prompt, but for its last token; return how many ran."""
    with memory.lock:
        kinds = {key: describe_kind(planned.plan, key) for key in keys}
        prefixes = {key: prefix for key in keys if isinstance(prefix := memory.find(key, kinds[key]), Prefix)}
        advanced = advance_prefixes(planned, memory, prefixes)
        for key, prefix in advanced.items():
            memory.keep(key, kinds[key], prefix)
        return sum(prefix is not prefixes[key] for key, prefix in advanced.items())


def _list_missing(planned: PlannedCall, memory: PrefixMemory, keys: Sequence[Hashable]) -> list[Hashable]:
    return [key for key in keys if memory.find(key, describe_kind(planned.plan, key)) is None]


def _continue(planned: PlannedCall, key: Hashable, prefix: Prefix) -> SharedPrompt | str:
    """Return the prompts of main or of a branch behind their prefix, or why they cannot go on from it."""
    inputs = build_text_inputs(planned.request, planned.plan.branches.get(key), prefix)
    rows = list_rows(inputs) if key == MAIN or planned.plan.branches[key].image != "masked" else []
    if not continue_all(rows, prefix.ids):
        return "its prompt begins otherwise"
    if len({len(row) for row in rows}) > 1 and not is_plain(prefix.cache):
        return LENGTHS
    return SharedPrompt(prefix, inputs)


def _carry_rows(planned: PlannedCall, shared: Mapping[Hashable, SharedPrompt]) -> None:
    """Let edits find what they kept while the prefixes ran, for every row of generate."""
    rows = planned.main.input_ids.shape[0]
    for prompt in shared.values():
        for name, tensor in prompt.prefix.rows.items():
            planned.call.gen.rows.put(name, tensor.expand(rows, *tensor.shape[1:]))


def _replace(
    planned: PlannedCall, memory: PrefixMemory, shared: Mapping[Hashable, SharedPrompt], sharing: Sharing
) -> PlannedCall:
    plan, preparation, interventions = planned.plan, planned.preparation, planned.interventions
    assert isinstance(preparation, LookPreparation)
    whole_branches = [plan.branches[key] for key in plan.branches if key not in shared]
    wants_images = MAIN not in shared or any(not branch.drops_image for branch in whole_branches)
    noted = (
        id(edit) for key in shared for name, number, edit in list_edits(plan, key) if (name, number) in memory.effects
    )
    return dataclasses.replace(
        planned,
        preparation=dataclasses.replace(preparation, shared=shared, wants_images=wants_images),
        interventions=SharedInterventions(
            interventions.inside,
            [edit for edit in interventions.vision_edits if edit.branch not in shared],
            interventions.towers,
            frozenset(noted),
        ),
        sharing=sharing,
    )
