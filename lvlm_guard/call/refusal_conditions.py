"""What the rules of refusals ask about a call, and the words that depend on it."""

from __future__ import annotations

from collections.abc import Sequence

from lvlm_guard import anatomy
from lvlm_guard.cache_names import CACHE_NAMES, find_cache, name_of_cache
from lvlm_guard.call.rules import (
    EditedAttention,
    PreparedBranch,
    PreparedMain,
    RequestedBranch,
)
from lvlm_guard.errors import quote
from lvlm_guard.forward import PreparedDecode, caches
from lvlm_guard.forward.own_generate import has_own_generate
from lvlm_guard.protocols import Cache
from lvlm_guard.request import prompts
from lvlm_guard.request.requests import Request
from lvlm_guard.strategy.branches import Branch

DRAFTS_OF_SAME_MODULE = ("assistant_model", "assistant_early_exit")  # their forwards may come before main's first
DRAFTS = (*DRAFTS_OF_SAME_MODULE, "prompt_lookup_num_tokens")
NEED_THE_LOOP = (*DRAFTS, "stop_strings", "guidance_scale")
NEED_FINAL_TOKENS = ("return_dict_in_generate", "output_scores", "output_logits")
CONSTRAINTS = ("force_words_ids", "constraints")
HUB_LOOPS = ("penalty_alpha", "dola_layers", *CONSTRAINTS, "num_beam_groups")


WHOLE_BATCH = (
    "streamer", *CACHE_NAMES, "logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn",
    "negative_prompt_ids", "return_dict_in_generate", "output_scores", "output_logits", *DRAFTS,
)  # fmt: skip


def count_new_tokens(main: PreparedDecode) -> int:
    """Return how many tokens main may generate at most."""
    return max(int(main.settings.max_length) - main.input_ids.shape[1], 1)


def first_setting(request: Request, names: Sequence[str]) -> str | None:
    """Return the first of these settings that is switched on."""
    return next((name for name in names if request.setting(name)), None)


def name_setting(request: Request, name: str, remedy: str) -> str:
    """Say where a setting comes from, and how to be rid of it: a checkpoint's has to be overridden, the call's dropped."""
    if request.is_of_checkpoint(name):
        value = getattr(request.defaults, name)
        return f"the checkpoint's generation_config sets {name}={value!r}: pass {remedy} in the call"
    return f"drop {name}"


def hub_loop(request: Request) -> str | None:
    """Return the setting that makes generate load another decoding loop from the hub, read as generate reads them."""
    if constraint := next((name for name in CONSTRAINTS if request.setting(name) is not None), None):
        return constraint
    if (request.setting("num_beams") or 1) > 1:
        return "num_beam_groups" if (request.setting("num_beam_groups") or 1) > 1 else None
    top_k = request.setting("top_k")
    looks_back = (request.setting("penalty_alpha") or 0) > 0 and (top_k is None or top_k > 1)
    if looks_back and not request.setting("do_sample"):
        return "penalty_alpha"
    return "dola_layers" if request.setting("dola_layers") is not None else None


def describe_hub_loop(request: Request) -> str:
    """Say which setting loads the loop, and how to be rid of it."""
    name = hub_loop(request)
    assert name is not None
    place = f"take it out of model.generation_config, which sets it to {quote(getattr(request.defaults, name))}"
    remedy = place if request.is_of_checkpoint(name) else "drop it"
    return f"{name} makes generate load another decoding loop from the hub, so it cannot be guarded: {remedy}."


def strays(subject: RequestedBranch) -> bool:
    """Whether a branch puts token ids into the prompt that the model does not embed."""
    size = subject.request.vocabulary
    return size is not None and any(not 0 <= token < size for token in tokens_of(subject.branch))


def tokens_of(branch: Branch) -> list[int]:
    """Return every token id that a branch puts into the prompt."""
    rows = [row for edit in branch.tokens for row in (getattr(edit, "per_row", None) or (edit.ids,))]
    return [token for row in rows for token in row]


def first_whole_batch(request: Request) -> str | None:
    """Return the first argument that works on the whole batch."""
    cache = name_of_cache(request.inputs) if find_cache(request.inputs) is not None else None
    setting = first_setting(request, [name for name in WHOLE_BATCH if name not in CACHE_NAMES])
    return setting or cache


def edits_beside_video(subject: RequestedBranch) -> bool:
    """Whether a branch edits still images while the request holds a video."""
    branch = subject.branch
    edits_image = branch.picture is not None or branch.features is not None or branch.image == "masked"
    return subject.request.has_video and edits_image


def drops_scattered_video(subject: RequestedBranch) -> bool:
    """Whether a branch drops a video whose frames stand apart, where nothing tells what was written for each."""
    drops = subject.branch.drops_image and subject.request.has_video
    return drops and prompts.find_video_spans(subject.request) is None


def has_unnamed_image(subject: RequestedBranch) -> bool:
    """Whether a branch edits the prompt at an image whose tokens neither the config, nor the inputs, nor a processor name."""
    request, branch = subject.request, subject.branch
    at_image = branch.drops_image or any("image" in getattr(edit, "place", "") for edit in branch.tokens)
    marked = request.places is not None and bool((request.places < 0).any())
    is_named = request.processor is not None or anatomy.image_token_id(request.config) is not None or marked
    return at_image and request.has_image and not is_named and request.text_name == "input_ids"


def is_foreign(cache: object) -> bool:
    """Whether a cache is none of transformers' own."""
    return cache is not None and not hasattr(cache, "get_seq_length")


def holds_tokens(cache: Cache | None) -> bool:
    """Whether a cache was used before."""
    return cache is not None and cache.get_seq_length() > 0


def cannot_generate(model: object) -> bool:
    """Whether a model has no generate, or says that it cannot."""
    check = getattr(model, "can_generate", None)
    is_denied = callable(check) and not check() and not has_own_generate(model)
    return is_denied or not callable(getattr(model, "generate", None))


def describe_no_generate(model: object) -> str:
    """Name the model inside a wrapper, where that is what is meant."""
    inner = next((name for name in ("module", "model") if hasattr(getattr(model, name, None), "generate")), None)
    remedy = "" if inner is None else f" Pass the model inside: Guard(model.{inner}, ...)."
    return f"{type(model).__name__} has no autoregressive generate, so there is nothing to guard.{remedy}"


def edits_absent_image(subject: EditedAttention) -> bool:
    """Whether attention to an image is to be edited that no prompt holds."""
    if not any(edit.keys in ("image", "before_image") for edit in subject.edits):
        return False
    module = subject.main.module
    beside_prompt = anatomy.attends_across(module) or anatomy.encodes_images_alone(module)
    return not bool(subject.image_mask.any()) and not beside_prompt


def cannot_roll_back(subject: PreparedMain) -> bool:
    """Whether drafts may be rejected while the cache cannot forget."""
    main = subject.main
    return first_setting(subject.request, DRAFTS) is not None and not caches.can_roll_back(
        main.cache, main.module.config
    )


def overflows(subject: PreparedBranch) -> bool:
    """Whether the prompt of a branch and its tokens are longer than the model allows."""
    limit = anatomy.maximum_length(subject.main.module.config)
    new = count_new_tokens(subject.main)
    return limit is not None and subject.prepared.length + new > limit >= subject.main.length + new


def describe_overflow(subject: PreparedBranch) -> str:
    """Say how long the prompt of a branch is, and how long it may be."""
    limit = anatomy.maximum_length(subject.main.module.config)
    return (
        f"Branch {subject.branch.key!r} makes the prompt {subject.prepared.length} tokens long; with "
        f"{count_new_tokens(subject.main)} new tokens that passes the model's {limit} positions. "
        "Shorten the prompt or max_new_tokens."
    )


def describe_forbidden(request: Request, problem: str, names: Sequence[str]) -> str:
    """Name the first of these settings that is switched on, and how to be rid of it."""
    name = first_setting(request, names)
    assert name is not None
    return f"{problem} {name}; {name_setting(request, name, f'{name}=False')}."
