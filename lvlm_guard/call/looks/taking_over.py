"""Prefixes taken from the prompts of a call that is answered, so that questions about its picture run it no more."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lvlm_guard.call.answered import AnsweredPrompts
from lvlm_guard.call.looks.dependence import describe_kind
from lvlm_guard.call.looks.rows import count_shared, list_rows
from lvlm_guard.forward.prefixes import Prefix


@dataclass(frozen=True, eq=False)
class AnsweredRow:
    """One prompt of an answered call, whose beginning others go on from.

    Args:
        answered: The prompts of the call.
        row: Which of its requests.
        not_taken: Why prefixes were not taken from it, by `"main"` or the key of a branch; empty where they were.
    """

    answered: AnsweredPrompts
    row: int
    not_taken: dict[Hashable, str] = field(default_factory=dict)

    @property
    def is_padded(self) -> bool:
        """Whether padding or gaps stood in the prompts of the call."""
        return not bool(self.answered.request.attention_mask.all())

    def find_obstacle(self, inputs: Mapping[str, Any], state: Any) -> str:
        """Return why no question with these model inputs goes on from here, on a model of this state; empty where some do."""
        if self.answered.obstacle:
            return self.answered.obstacle
        if self.answered.state != state:
            return "the model was changed since the answer"
        return "" if self.answered.shows(inputs) else "the picture of the answer was processed otherwise"

    def count_shared(self, ids: Sequence[int]) -> int:
        """Return with how many ids the prompt begins that others begin with, but for its last, at which it predicts."""
        request = self.answered.request
        rows = list_rows({"input_ids": request.input_ids, "attention_mask": request.attention_mask})
        return min(count_shared(rows[self.row], ids), len(rows[self.row]) - 1)

    def take(self, key: Hashable, kind: Any, ids: Sequence[int]) -> Prefix | str:
        """Return the prefix of main or of a branch that begins with these ids, or why it cannot be taken.

        Args:
            key: Whose.
            kind: What can be compared of its branch and its edits.
            ids: How its prompt is to begin.
        """
        prompt = self.answered.prompts.get(key, "the answer had no such branch")
        if isinstance(prompt, str):
            return prompt
        if describe_kind(self.answered.plan, key) != kind:
            return "strategies did something else in the prompt of the answer"
        cache = prompt.cut(self.row * self.answered.rows_per_request, ids)
        return cache if isinstance(cache, str) else Prefix(tuple(ids), cache, {}, can_be_cut=False)
