"""States of prompts that strategies ask for in `start`: stood in for while a group is made, and known once its probes have run."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from lvlm_guard.call.plan import outline_branch
from lvlm_guard.errors import StrategyRefused
from lvlm_guard.strategy.branches import MAIN, Branch
from lvlm_guard.strategy.prompt import ModelInfo, PromptStates


def name_prompt(branch: Branch | None) -> str:
    """Return the name by which both sides know a prompt: main's (None) or a branch's."""
    return MAIN if branch is None else repr((branch.key, outline_branch(branch)))


class StandInStates:
    """Drawn states in place of those that the engine has yet to compute, so that a group can be planned before.

    What is planned must not depend on them: the plan is made again with the true ones, and compared.

    Args:
        model: The model that answers.

    Attributes:
        prompts: Those that were asked for, by name: a branch, or None for main.
    """

    def __init__(self, model: ModelInfo) -> None:
        self._model = model
        self.prompts: dict[str, Branch | None] = {}

    def __call__(self, branch: Branch | None) -> PromptStates:
        """Note a prompt, and return states of the right shapes."""
        self.prompts.setdefault(name_prompt(branch), branch)
        drawn = torch.Generator().manual_seed(len(self.prompts))
        text = self._model.config.get_text_config(decoder=True)
        hidden = torch.randn(1, self._model.depth, int(self._model.hidden_size or 1), generator=drawn)
        return PromptStates(hidden, torch.randn(1, int(text.vocab_size), generator=drawn))


class KnownStates:
    """States that the probes of a group left.

    Args:
        states: By the names of their prompts.
    """

    def __init__(self, states: Mapping[str, PromptStates]) -> None:
        self._states = dict(states)

    def __call__(self, branch: Branch | None) -> PromptStates:
        """Return the states of a prompt.

        Raises:
            StrategyRefused: It was not asked for when the group was made.
        """
        states = self._states.get(name_prompt(branch))
        if states is None:
            raise StrategyRefused(
                "A strategy asks for the states of a prompt that it did not ask for when the group was made, which requests in vLLM "
                "cannot follow: run it in the process, Guard(model, processor)."
            )
        return states
