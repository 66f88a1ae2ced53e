"""Prompts of main and of branches, prepared by the model's own generate and, where a strategy wants it, run once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from lvlm_guard.call.refusal_conditions import count_new_tokens
from lvlm_guard.call.refusals import BRANCH_PREPARED
from lvlm_guard.call.rules import PreparedBranch, refuse
from lvlm_guard.call.text_alone import prepare_text_alone
from lvlm_guard.errors import GuardError, ModelRefused
from lvlm_guard.forward import PreparedDecode, capture_decode, model_inputs, prompt_states
from lvlm_guard.forward.interventions import vision
from lvlm_guard.forward.preparation import static_length_kept
from lvlm_guard.request.branch_inputs import build_branch_inputs, share_encoded
from lvlm_guard.request.requests import Request
from lvlm_guard.strategy.branches import MAIN, Branch
from lvlm_guard.strategy.generation import Generation
from lvlm_guard.strategy.prompt import PromptStates

Use = Callable[[PreparedDecode], None]
"""What is done with a prepared decode while generate runs."""
LENGTHS = ("max_length", "max_new_tokens", "min_length", "min_new_tokens")


@dataclass(frozen=True, eq=False)
class PromptPreparation:
    """Prepares the prompts of one call.

    Args:
        generate: The model's own generate, unguarded.
        request: The request, edited.
        settings: Settings of the loop.
        gen: The object that travels through every hook.
    """

    generate: Callable[..., Any]
    request: Request
    settings: Mapping[str, Any]
    gen: Generation

    def prepare_main(self, use: Use | None = None) -> PreparedDecode:
        """Return main as generate prepares it; `use` is called with it while generate runs."""
        return capture_decode(self.generate, self.request.without_cache, self.settings, use)

    def prepare_whole(self, use: Use | None = None) -> PreparedDecode:
        """Return main as generate prepares it, its pictures included; `use` as for `prepare_main`."""
        return self.prepare_main(use)

    def build_main_inputs(self, _main: PreparedDecode, encoded: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return model inputs for generate, with encoded images where it takes them."""
        inputs = dict(self.request.inputs)
        return inputs if encoded is None else share_encoded(inputs, encoded)

    def encode_images(self, main: PreparedDecode) -> Mapping[str, Any] | None:
        """Return main's encoded images before any expansion; None where the model encodes inside its forward."""
        if not model_inputs.takes_encoded_images(main.module):
            return None
        encoded = self._keep_single(main).kwargs.get("mm_encoder_outputs")
        return encoded if encoded and encoded.get("image") is not None else None

    def _keep_single(self, main: PreparedDecode) -> PreparedDecode:
        """Return main with a row for each request."""
        if main.rows_per_request == 1:
            return main
        single = {**self.settings, "num_beams": 1, "num_return_sequences": 1}
        return capture_decode(self.generate, self.request.without_cache, single)

    def prepare_branch(
        self, branch: Branch, main: PreparedDecode, encoded: Mapping[str, Any] | None, use: Use | None = None
    ) -> PreparedDecode:
        """Return a branch as generate prepares it, with main's encoded images where its image is main's.

        `use` is called with it while generate runs.

        Raises:
            ModelRefused: The model cannot prepare it.
            InputError: Its prompt is too long.
        """
        inputs = build_branch_inputs(self.request, branch, encoded)
        settings = limit_new_tokens(self.settings, count_new_tokens(main))
        try:
            with vision.encoding(self.gen, branch.key), static_length_kept(main.module):
                prepared = self._prepare(branch, main, inputs, settings, use)
        except GuardError:
            raise
        except Exception as error:
            raise _refuse_to_prepare(branch, main, error) from error
        refuse(BRANCH_PREPARED, PreparedBranch(branch, prepared, main))
        return prepared

    def compute_states(self, branch: Branch | None, main: PreparedDecode) -> PromptStates:
        """Run the prompt of main (None) or of a branch once, whole and with nothing edited inside."""
        states: list[PromptStates] = []

        def run(prepared: PreparedDecode) -> None:
            states.append(prompt_states.run_prompt(prepared))

        if branch is None:
            self.prepare_whole(run)
        else:
            encoded = None if branch.drops_image else self.encode_images(main)
            self.prepare_branch(branch, main, encoded, run)
        return states[0]

    def _prepare(
        self,
        branch: Branch,
        main: PreparedDecode,
        inputs: Mapping[str, Any],
        settings: Mapping[str, Any],
        use: Use | None,
    ) -> PreparedDecode:
        """Let the model's own generate prepare a prompt, or the module that decodes where that one runs on pixels only."""
        try:
            return capture_decode(self.generate, inputs, settings, use)
        except Exception as error:
            if not branch.drops_image or main.module is getattr(self.generate, "__self__", main.module):
                raise
            try:
                prepared = prepare_text_alone(self._keep_single(main), self.request, inputs, settings)
            except ModelRefused as reason:
                raise _refuse_to_prepare(branch, main, f"{error}, and {reason}") from error
        if use is not None:
            use(prepared)
        return prepared


def _refuse_to_prepare(branch: Branch, main: PreparedDecode, reason: object) -> ModelRefused:
    hint = " Choose a strategy whose branches keep the image." if branch.drops_image else ""
    return ModelRefused(f"Branch {branch.key!r} cannot be prepared on {type(main.module).__name__}: {reason}.{hint}")


class PromptRuns:
    """Runs the prompt of main or of a branch once, nothing edited inside; `gen.prompt_states`.

    Args:
        preparation: Prepares the prompts.
        main: Main as prepared.

    Attributes:
        keys: Keys of the prompts that were run, in order.
    """

    def __init__(self, preparation: PromptPreparation, main: PreparedDecode) -> None:
        self.keys: list[Hashable] = []
        self._preparation = preparation
        self._main = main

    def __call__(self, branch: Branch | None) -> PromptStates:
        """Run the prompt of main (None) or of a branch."""
        states = self._preparation.compute_states(branch, self._main)
        self.keys.append(MAIN if branch is None else branch.key)
        return states


def limit_new_tokens(settings: Mapping[str, Any], tokens: int) -> dict[str, Any]:
    """Return settings with as many new tokens as main may generate, whatever lengths they named."""
    without_lengths = {name: value for name, value in settings.items() if name not in LENGTHS}
    if (config := without_lengths.get("generation_config")) is not None:
        config = without_lengths["generation_config"] = copy.deepcopy(config)
        for name in LENGTHS:
            setattr(config, name, None)
    return {**without_lengths, "max_new_tokens": tokens}
