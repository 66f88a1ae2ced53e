"""What a strategy may ask of groups of requests, and refusals that name the strategy and what is missing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lvlm_guard.call.plan import Edit, Plan
from lvlm_guard.errors import StrategyRefused
from lvlm_guard.host.plugins import StrategyCalls
from lvlm_guard.strategy.branches import Branch
from lvlm_guard.strategy.edits import AttentionCapture, AttentionEdit, HiddenEdit, Readout
from lvlm_guard.strategy.hidden_operations import Project, Shift, Turn

LACKING_HOOKS: Mapping[str, str] = {
    "search": "a decoding loop of its own",
    "finish": "answers that are looked at once they are complete",
    "observe": "a look at every step's combined logits",
}
"""Hooks that nobody calls in this engine, with what they are for."""
CAPTURES = "captures of attention"
COMPILED = "readouts of inner layers, which a compiled model does not give (set enforce_eager=True)"
COMPILED_EDITS = "edits inside the layers, which a compiled model passes by (set enforce_eager=True)"
FUNCTIONS = "edits of hidden states by a function that may look at a prompt as a whole"
ATTENTION_FUNCTIONS = "edits of attention by a function that may look at a prompt as a whole"
VISION = "edits of the vision tower"

PROMPT_STATES = (
    "prompts that are run for their hidden states, which a compiled model does not give (set enforce_eager=True)"
)


def refuse_hooks(strategies: StrategyCalls) -> None:
    """Refuse strategies with active hooks that nobody calls here.

    Raises:
        StrategyRefused: Names the strategy and what is missing.
    """
    for hook, need in LACKING_HOOKS.items():
        for name in strategies.active(hook):
            raise lacking(name, need)


def refuse_plan(plan: Plan, *, reads_layers: bool) -> None:
    """Refuse branches and edits that a group of requests cannot have.

    Args:
        plan: What the strategies ask for.
        reads_layers: Whether the engine can read and edit its inner layers.

    Raises:
        StrategyRefused: Names the strategy and what is missing.
    """
    for name, edits in plan.edits.items():
        for edit in edits:
            need = _find_lacking(edit, reads_layers=reads_layers)
            if need is not None:
                raise lacking(name, need)
    for name, keys in plan.branch_keys.items():
        for need in _find_needs(plan.branches[key] for key in keys):
            raise lacking(name, need)


def lacking(name: str, need: str) -> StrategyRefused:
    """Return the refusal of a strategy that needs what the engine lacks."""
    return StrategyRefused(
        f"{name!r} needs {need}, which groups of requests in vLLM do not have: run it in the process, Guard(model, processor)."
    )


def _find_lacking(edit: Edit, *, reads_layers: bool) -> str | None:
    """Return what an edit needs that the engine lacks; None where it lacks nothing."""
    if isinstance(edit, Readout):
        return None if reads_layers else COMPILED
    if isinstance(edit, AttentionCapture):
        return CAPTURES
    if isinstance(edit, HiddenEdit) and edit.tower == "vision":
        return VISION
    if isinstance(edit, HiddenEdit) and not isinstance(edit.edit, (Turn, Project, Shift)):
        return FUNCTIONS
    if isinstance(edit, AttentionEdit) and callable(edit.operation):
        return ATTENTION_FUNCTIONS
    return None if reads_layers else COMPILED_EDITS


def _find_needs(branches: Iterable[Branch]) -> Iterable[str]:
    """Yield what the branches need that a request of its own cannot be."""
    for branch in branches:
        if branch.features is not None:
            yield "edits of image features"
        if branch.image == "masked":
            yield "images masked in attention"
        if branch.after_prefill is not None:
            yield "branches made of main's prefill"
