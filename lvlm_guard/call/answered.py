"""What the prompts of a call left once it is answered, for the questions that strategies ask before it finishes."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lvlm_guard import anatomy
from lvlm_guard.call.plan import Plan
from lvlm_guard.forward.kept_prompts import KeptPrompt
from lvlm_guard.request.requests import Request

SHARED = "shared"
"""What a report says of a prompt that went on from what was run before."""


@dataclass(frozen=True, eq=False)
class AnsweredPrompts:
    """The prompts of an answered call.

    Args:
        plan: Branches and edits of the call.
        request: Its request.
        prompts: What the prefill left of main and of branches, or why nothing can go on from it.
        obstacle: Why nothing can go on from any of them; empty where something can.
        effects: Edits that changed something, by strategy and number.
        state: What the model was like.
        rows_per_request: Rows of generate for each prompt.
        used: How the prompts of questions ran, by `"main"` and the keys of branches as the report writes them.
    """

    plan: Plan
    request: Request
    prompts: Mapping[Hashable, KeptPrompt | str]
    obstacle: str = ""
    effects: frozenset[tuple[str, int]] = frozenset()
    state: Any = None
    rows_per_request: int = 1
    used: dict[str, str] = field(default_factory=dict)

    def note(self, name: str, reason: str) -> None:
        """Note that questions of main or of a branch went on from here, or why they did not; reasons outlast."""
        if self.used.setdefault(name, reason or SHARED) == SHARED and reason:
            self.used[name] = reason

    def shows(self, inputs: Mapping[str, Any]) -> bool:
        """Whether the pictures of some prompt were processed as those of other model inputs were."""
        return all(
            _holds(self.request.inputs.get(name), value)
            for name, value in inputs.items()
            if anatomy.is_image_input(name) and name != "cross_attention_mask"
        )


def _holds(values: Any, part: Any) -> bool:
    """Whether a tensor `[n, ...]` is found in another `[m, ...]`, entries next to each other."""
    if not isinstance(values, Tensor) or not isinstance(part, Tensor):
        return type(values) is type(part) and values == part
    if values.shape[1:] != part.shape[1:] or not 0 < len(part) <= len(values):
        return False
    part, length = part.to(values.device, values.dtype), len(part)
    starts = (values[: len(values) - length + 1] == part[:1]).flatten(1).all(1).nonzero()
    return any(bool((values[start : start + length] == part).all()) for start in starts.flatten().tolist())
