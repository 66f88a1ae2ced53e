"""Answers about the same items: what a system skipped counts for no other one either."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lvlm_guard.bench.items import AnsweredItem

if TYPE_CHECKING:
    from lvlm_guard.bench.reporting.results import Outcome
    from lvlm_guard.bench.running.store import Record

Answers = Sequence[AnsweredItem]


def select_comparable(record: Record, suite: str, answers_by_system: Mapping[str, Answers]) -> dict[str, Answers]:
    """Return each system's answers to the items that no system skipped, so that all scores are about the same items.

    A system without any answer, which has no scores, takes none from the others.
    """
    skipped = {
        item_id
        for system, answers in answers_by_system.items()
        if answers
        for item_id in record.read_skipped(system, suite).ids
    }
    return {
        system: [answered for answered in answers if answered.item.id not in skipped]
        for system, answers in answers_by_system.items()
    }


def describe_skipped(outcome: Outcome) -> str | None:
    """Describe the items without a picture that a system skipped, and what that means for scores; None where it has none."""
    if not outcome.skipped or not outcome.answers:
        return None
    return (
        f"{outcome.skipped} of {outcome.items} items, which have no picture; the scores of all systems are about the others: "
        f"{outcome.skipped_reason}"
    )


def select_shared(before: Answers, after: Answers) -> tuple[list[AnsweredItem], list[AnsweredItem]]:
    """Return the answers of two runs to the items that both answered."""
    shared = {answered.item.id for answered in before} & {answered.item.id for answered in after}
    first, second = ([answered for answered in answers if answered.item.id in shared] for answers in (before, after))
    return first, second
