"""What rooms below this one refuse where they meet it, for the page of refusals."""

from __future__ import annotations

from collections.abc import Mapping

from lvlm_guard.call.rules import (
    Refusal,
)
from lvlm_guard.errors import InputError, ModelRefused, ModeRefused, ProcessorNeeded, StrategyRefused

REFUSED_ELSEWHERE: Mapping[str, tuple[Refusal, ...]] = {
    "Inputs": (
        Refusal(
            "a call without `input_ids`",
            "branches cannot be made of embeddings",
            "pass the processor's full output",
            ModeRefused,
        ),
        Refusal(
            "prompts padded on the right",
            "generation starts at the last position",
            '`padding_side = "left"`',
            InputError,
        ),
        Refusal(
            "`position_ids` and `inputs_embeds`, where a branch changes the prompt",
            "they cannot follow the change",
            "drop them",
            ModeRefused,
        ),
    ),
    "Edits of images and prompts": (
        Refusal(
            "feature edits where generate takes no encoded images",
            "they could not reach the model",
            "another kind of branch",
            ModelRefused,
        ),
        Refusal(
            "edits of pixels where the images come already encoded",
            "there are no pixels",
            "pass the pixels",
            StrategyRefused,
        ),
        Refusal(
            "edits of pictures without a processor",
            "mean and deviation of the pixels are unknown",
            "`Guard(model, processor)`",
            ProcessorNeeded,
        ),
        Refusal(
            "masked images where images stand beside the prompt",
            "there is nothing in the prompt to mask",
            "another kind of branch",
            ModelRefused,
        ),
    ),
    "Outputs": (
        Refusal(
            "a class whose `generate` returns no token ids, such as text",
            "nothing tells which token was chosen where",
            "pass the model inside",
            ModelRefused,
        ),
        Refusal(
            "a class whose `generate` puts unknown ids in front of the answer",
            "nothing tells where the answer begins",
            "pass the model inside",
            ModelRefused,
        ),
    ),
    "Executors": (
        Refusal(
            '`executor="batched"` with `use_cache=False`',
            "one batch goes on from one cache",
            'drop `use_cache=False`, or `executor="sequential"`',
            ModeRefused,
        ),
        Refusal(
            '`executor="batched"` where it would not be exact',
            "it was insisted on",
            '`executor="auto"`',
            ModeRefused,
        ),
        Refusal(
            "searches that go back, where a cache layer cannot forget tokens",
            "rejected tokens would stay in the cache",
            "another search, or another model",
            ModeRefused,
        ),
    ),
}
"""What rooms below this one refuse where they meet it."""
