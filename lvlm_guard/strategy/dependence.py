"""What depends on the end of a prompt, and so cannot be run once with the images for many questions."""

from __future__ import annotations

from lvlm_guard.strategy.branches import Branch
from lvlm_guard.strategy.edits import AttentionCapture, AttentionEdit, HiddenEdit, Readout
from lvlm_guard.strategy.hidden_operations import Project, Shift, Turn, find_vectors

FUNCTIONS = ("pixels", "picture", "features")


def branch_depends_on_end(branch: Branch) -> bool:
    """Return whether a branch's images depend on the text behind them: as it declares, else where it has a function."""
    if branch.after_prefill is not None:
        return True
    if branch.depends_on_end is not None:
        return branch.depends_on_end
    return any(getattr(branch, name) is not None for name in FUNCTIONS)


def edit_depends_on_end(edit: AttentionEdit | AttentionCapture | HiddenEdit | Readout) -> bool:
    """Return whether work inside the layers, in the prompt, depends on the text behind the images.

    As it declares; else functions do, unless they leave the prompt alone, and named operations do not.
    """
    if isinstance(edit, Readout):
        return False
    if edit.depends_on_end is not None:
        return edit.depends_on_end
    if edit.when == "decode":
        return False
    if isinstance(edit, AttentionEdit):
        return callable(edit.operation)
    if isinstance(edit, HiddenEdit) and isinstance(edit.edit, (Turn, Project, Shift)):
        return callable(find_vectors(edit.edit))
    return True


def edits_prompt(edit: AttentionEdit | AttentionCapture | HiddenEdit | Readout) -> bool:
    """Return whether an edit changes positions before the one that predicts the first token."""
    if isinstance(edit, (Readout, AttentionCapture)) or edit.when == "decode":
        return False
    return (edit.queries if isinstance(edit, AttentionEdit) else edit.positions) != "predicting"
