"""Prompts of a call on a look, prepared without their pictures where they go on from a prefix."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lvlm_guard.call.looks.rows import lay_out_behind
from lvlm_guard.call.prompt_preparation import PromptPreparation, Use, limit_new_tokens
from lvlm_guard.call.refusal_conditions import count_new_tokens
from lvlm_guard.call.refusals import BRANCH_PREPARED
from lvlm_guard.call.rules import PreparedBranch, refuse
from lvlm_guard.forward import PreparedDecode
from lvlm_guard.forward.prefixes import Prefix, capture_positions, continue_prefix, continuing_inputs
from lvlm_guard.request.branch_inputs import build_branch_inputs
from lvlm_guard.request.requests import Request
from lvlm_guard.strategy.branches import MAIN, Branch
from lvlm_guard.strategy.prompt import PromptStates


@dataclass(frozen=True, eq=False)
class SharedPrompt:
    """Prompts that go on from a prefix.

    Args:
        prefix: The prefix.
        inputs: Model inputs of the whole prompts, ids laid out behind it.
    """

    prefix: Prefix
    inputs: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class LookPreparation(PromptPreparation):
    """Prepares the prompts of one call on a look.

    Args:
        shared: Prompts that go on from a prefix, by `"main"` or the key of a branch.
        wants_images: Whether some prompt runs whole with its images.
        compute_unedited: Computes the states of main's prompt behind a prefix, or returns None where it has to run whole.
    """

    shared: Mapping[Hashable, SharedPrompt] = field(default_factory=dict)
    wants_images: bool = True
    compute_unedited: Callable[[PromptPreparation, PreparedDecode], PromptStates | None] | None = None

    def prepare_main(self, use: Use | None = None) -> PreparedDecode:
        """Return main as generate prepares it without its pixels; to be used while generate runs, whole."""
        if use is not None:
            return self.prepare_whole(use)
        return capture_positions(self.generate, with_mask(self.request), self.settings)

    def prepare_whole(self, use: Use | None = None) -> PreparedDecode:
        """Return main as generate prepares it."""
        return super().prepare_main(use)

    def encode_images(self, main: PreparedDecode) -> Mapping[str, Any] | None:  # noqa: ARG002 - main has no pixels here
        """Return main's encoded images; None where no prompt runs whole with them."""
        return super().encode_images(self.prepare_whole()) if self.wants_images else None

    def prepare_branch(
        self, branch: Branch, main: PreparedDecode, encoded: Mapping[str, Any] | None, use: Use | None = None
    ) -> PreparedDecode:
        """Return a branch, going on from its prefix where it has one; to be used while generate runs, whole."""
        shared = self.shared.get(branch.key)
        if shared is None or use is not None:
            return super().prepare_branch(branch, main, encoded, use)
        settings = limit_new_tokens(self.settings, count_new_tokens(main))
        prepared = continue_prefix(capture_positions(self.generate, shared.inputs, settings), shared.prefix)
        refuse(BRANCH_PREPARED, PreparedBranch(branch, prepared, main))
        return prepared

    def compute_states(self, branch: Branch | None, main: PreparedDecode) -> PromptStates:
        """Run the prompt of main (None) or of a branch once with nothing edited inside, main's behind a prefix where it can."""
        states = self.compute_unedited(self, main) if branch is None and self.compute_unedited is not None else None
        return super().compute_states(branch, main) if states is None else states

    def build_main_inputs(self, main: PreparedDecode, encoded: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return model inputs for generate: those that go on from main's prefix where it has one."""
        shared = self.shared.get(MAIN)
        if shared is None:
            return super().build_main_inputs(main, encoded)
        return continuing_inputs(shared.inputs, main, shared.prefix)


def with_mask(request: Request) -> dict[str, Any]:
    """Return the model inputs of a request, its mask among them."""
    return {**request.without_cache, "attention_mask": request.attention_mask}


def edits_text(branch: Branch) -> bool:
    """Return whether a branch has other ids than main."""
    return branch.drops_image or bool(branch.tokens)


def as_text(branch: Branch) -> Branch:
    """Return a branch without its edits of images."""
    return dataclasses.replace(branch, pixels=None, picture=None, features=None, inside=True)


def build_text_inputs(request: Request, branch: Branch | None, prefix: Prefix) -> dict[str, Any]:
    """Return model inputs of main (None) or of a branch without any edit of images, ids laid out behind a prefix."""
    if branch is None:
        return with_mask(request)
    inputs = build_branch_inputs(request, as_text(branch), None)
    return {**inputs, **lay_out_behind(inputs, len(prefix.ids))} if edits_text(branch) else inputs
