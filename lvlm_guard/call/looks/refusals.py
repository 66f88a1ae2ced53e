"""What a call on a look refuses."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lvlm_guard.cache_names import CACHE_NAMES, name_of_cache
from lvlm_guard.call.looks.rows import ALIGNED
from lvlm_guard.call.refusal_conditions import DRAFTS
from lvlm_guard.call.rules import RefusalRule
from lvlm_guard.errors import InputError, ModelRefused, ModeRefused
from lvlm_guard.request.requests import Request

OTHER_CACHES = ("cache_implementation", "prefill_chunk_size", *DRAFTS)
WHOLE_BATCH = ("streamer", "return_dict_in_generate", "output_scores", "output_logits")
READS_PADDING = (
    "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids", "sequence_bias", "watermarking_config", "stop_strings",
)  # fmt: skip
"""Settings under which it matters where in the prompt padding stands."""
READS_PROMPT = ("logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn")
"""Functions of the call, which are to see prompts as they were passed."""


def find_unknown_input(request: Request) -> str | None:
    """Return the first model input with an entry for each token that no look knows how to cut."""
    shape = request.input_ids.shape
    return next(
        (
            name
            for name, value in request.inputs.items()
            if isinstance(value, Tensor) and value.shape == shape and name not in ALIGNED
        ),
        None,
    )


def find_setting(request: Request, names: tuple[str, ...]) -> str | None:
    """Return the first of these settings that is switched on."""
    return next((name for name in names if request.setting(name)), None)


LOOK: tuple[RefusalRule[Request], ...] = (
    RefusalRule(
        "looks of an encoder-decoder",
        "its encoder reads a whole prompt at once",
        "`guard.generate` with whole prompts",
        ModelRefused,
        lambda request: bool(getattr(request.config, "is_encoder_decoder", False)),
        lambda _: (
            "An encoder reads a whole prompt at once, so nothing of it can be run before: pass whole prompts to guard.generate."
        ),
    ),
    RefusalRule(
        "arguments that list something for each row, such as `adapter_names`, on a look",
        "its rows would be of several kinds, and the look is of one",
        "`guard.generate` with whole prompts",
        ModeRefused,
        lambda request: request.row_list is not None,
        lambda request: (
            f"{request.row_list} lists something for each row, but a look is run once for all rows: pass whole prompts to guard.generate."
        ),
    ),
    RefusalRule(
        f"{', '.join(f'`{name}`' for name in OTHER_CACHES)} on a look",
        "prompts go on from copies of the look's own cache",
        "drop it, or `guard.generate` with whole prompts",
        ModeRefused,
        lambda request: find_setting(request, OTHER_CACHES) is not None,
        lambda request: (
            f"A look goes on from its own cache, which {find_setting(request, OTHER_CACHES)} does not fit: drop it, or pass whole "
            "prompts to guard.generate."
        ),
    ),
    RefusalRule(
        "`use_cache=False` on a look",
        "a look is a cache",
        "drop it, or `guard.generate` with whole prompts",
        ModeRefused,
        lambda request: request.setting("use_cache") is False,
        lambda _: "A look goes on from a cache: drop use_cache=False, or pass whole prompts to guard.generate.",
    ),
    RefusalRule(
        "a cache (`cache`, `past_key_values`), `position_ids` and `inputs_embeds` on a look",
        "the look makes its own",
        "leave them out",
        InputError,
        lambda request: any(
            request.inputs.get(name) is not None for name in (*CACHE_NAMES, "position_ids", "inputs_embeds")
        ),
        lambda request: (
            "A look makes cache, positions and embeddings itself: leave "
            f"{name_of_cache(request.inputs)}, position_ids and inputs_embeds out."
        ),
    ),
    RefusalRule(
        "a model input with an entry for each token that is neither ids, mask nor token types, on a look",
        "nothing tells how it goes on behind the beginning",
        "`guard.generate` with whole prompts",
        ModelRefused,
        lambda request: find_unknown_input(request) is not None,
        lambda request: (
            f"{find_unknown_input(request)} has an entry for each token, and a look does not know how it goes on: pass whole prompts to "
            "guard.generate."
        ),
    ),
)
"""About a request on a look."""

LOOK_GROUPS: tuple[RefusalRule[Request], ...] = (
    RefusalRule(
        f"{', '.join(f'`{name}`' for name in WHOLE_BATCH)} on a look, for questions of several lengths that run in groups",
        "they work on the whole batch",
        "drop it, or ask questions of one length at a time",
        ModeRefused,
        lambda request: find_setting(request, WHOLE_BATCH) is not None,
        lambda request: (
            "Questions of several lengths run in groups of one length on this model, which cannot share "
            f"{find_setting(request, WHOLE_BATCH)}: drop it, or ask questions of one length at a time."
        ),
    ),
)
"""About a request on a look whose rows run in groups."""


RULES_OF_LOOKS: Mapping[str, tuple[RefusalRule[Request], ...]] = {
    "Looks": LOOK,
    "Looks whose questions run in groups": LOOK_GROUPS,
}
"""Every rule of looks, by what it is about."""
