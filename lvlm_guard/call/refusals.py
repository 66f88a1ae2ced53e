"""Everything a guarded call refuses, as rules in the order they are checked; `docs/reference/refusals.md` is made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lvlm_guard import anatomy
from lvlm_guard.cache_names import CACHE_NAMES, find_cache, name_of_cache
from lvlm_guard.call.rules import (
    EditedAttention,
    PreparedBranch,
    PreparedMain,
    Refusal,
    RefusalRule,
    RequestedBranch,
)
from lvlm_guard.errors import InputError, ModelRefused, ModeRefused, ProcessorNeeded, StrategyRefused, quote
from lvlm_guard.forward import PreparedDecode, caches
from lvlm_guard.protocols import Cache
from lvlm_guard.request import prompts
from lvlm_guard.request.requests import Request
from lvlm_guard.request.row_images import find_pixel_axis, rows_with_image
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


def _first_setting(request: Request, names: Sequence[str]) -> str | None:
    """Return the first of these settings that is switched on."""
    return next((name for name in names if request.setting(name)), None)


def _name_setting(request: Request, name: str, remedy: str) -> str:
    """Say where a setting comes from, and how to be rid of it: a checkpoint's has to be overridden, the call's dropped."""
    if request.is_of_checkpoint(name):
        value = getattr(request.defaults, name)
        return f"the checkpoint's generation_config sets {name}={value!r}: pass {remedy} in the call"
    return f"drop {name}"


def _hub_loop(request: Request) -> str | None:
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


def _describe_hub_loop(request: Request) -> str:
    name = _hub_loop(request)
    assert name is not None
    place = f"take it out of model.generation_config, which sets it to {quote(getattr(request.defaults, name))}"
    remedy = place if request.is_of_checkpoint(name) else "drop it"
    return f"{name} makes generate load another decoding loop from the hub, so it cannot be guarded: {remedy}."


def _strays(subject: RequestedBranch) -> bool:
    size = subject.request.vocabulary
    return size is not None and any(not 0 <= token < size for token in _tokens_of(subject.branch))


def _tokens_of(branch: Branch) -> list[int]:
    """Return every token id that a branch puts into the prompt."""
    rows = [row for edit in branch.tokens for row in (getattr(edit, "per_row", None) or (edit.ids,))]
    return [token for row in rows for token in row]


def _first_whole_batch(request: Request) -> str | None:
    """Return the first argument that works on the whole batch."""
    cache = name_of_cache(request.inputs) if find_cache(request.inputs) is not None else None
    setting = _first_setting(request, [name for name in WHOLE_BATCH if name not in CACHE_NAMES])
    return setting or cache


def _edits_beside_video(subject: RequestedBranch) -> bool:
    branch = subject.branch
    edits_image = branch.picture is not None or branch.features is not None or branch.image == "masked"
    return subject.request.has_video and edits_image


def _drops_scattered_video(subject: RequestedBranch) -> bool:
    drops = subject.branch.drops_image and subject.request.has_video
    return drops and prompts.find_video_spans(subject.request) is None


def _has_unnamed_image(subject: RequestedBranch) -> bool:
    """Whether a branch edits the prompt at an image whose tokens neither the config, nor the inputs, nor a processor name."""
    request, branch = subject.request, subject.branch
    at_image = branch.drops_image or any("image" in getattr(edit, "place", "") for edit in branch.tokens)
    marked = request.places is not None and bool((request.places < 0).any())
    is_named = request.processor is not None or anatomy.image_token_id(request.config) is not None or marked
    return at_image and request.has_image and not is_named and request.text_name == "input_ids"


def _is_foreign(cache: object) -> bool:
    return cache is not None and not hasattr(cache, "get_seq_length")


def _holds_tokens(cache: Cache | None) -> bool:
    return cache is not None and cache.get_seq_length() > 0


def _cannot_generate(model: object) -> bool:
    check = getattr(model, "can_generate", None)
    return not callable(getattr(model, "generate", None)) or (callable(check) and not check())


def _edits_absent_image(subject: EditedAttention) -> bool:
    if not any(edit.keys in ("image", "before_image") for edit in subject.edits):
        return False
    return not bool(subject.image_mask.any()) and not anatomy.attends_across(subject.main.module)


def _cannot_roll_back(subject: PreparedMain) -> bool:
    return _first_setting(subject.request, DRAFTS) is not None and not caches.can_roll_back(subject.main.cache)


def _overflows(subject: PreparedBranch) -> bool:
    limit = anatomy.maximum_length(subject.main.module.config)
    new = count_new_tokens(subject.main)
    return limit is not None and subject.prepared.length + new > limit >= subject.main.length + new


def _describe_overflow(subject: PreparedBranch) -> str:
    limit = anatomy.maximum_length(subject.main.module.config)
    return (
        f"Branch {subject.branch.key!r} makes the prompt {subject.prepared.length} tokens long; with "
        f"{count_new_tokens(subject.main)} new tokens that passes the model's {limit} positions. "
        "Shorten the prompt or max_new_tokens."
    )


def _describe_forbidden(request: Request, problem: str, names: Sequence[str]) -> str:
    name = _first_setting(request, names)
    assert name is not None
    return f"{problem} {name}; {_name_setting(request, name, f'{name}=False')}."


def _rules_of_whole_answers(author: str) -> tuple[RefusalRule[Request], ...]:
    """Return the rules about arguments that need every token to be final when it is chosen, or as many forwards as tokens."""
    owner = author.lower()
    return (
        RefusalRule(
            f"a streamer with {owner}",
            "tokens may change after they were chosen",
            "drop `streamer`",
            ModeRefused,
            lambda request: request.settings.get("streamer") is not None,
            lambda _: f"{author} changes answers after they were generated, so nothing can be streamed: drop it.",
        ),
        RefusalRule(
            f"`synced_gpus` with {owner}, as FSDP and ZeRO-3 set it",
            "its forwards differ in number from process to process, and all would wait for each other",
            "a strategy that leaves the decoding loop to generate",
            ModeRefused,
            lambda request: bool(request.settings.get("synced_gpus")),
            lambda _: (
                f"{author} runs as many forwards as its answer needs, but with synced_gpus, which FSDP and ZeRO-3 set, every process "
                "has to run the same number: use strategies that leave the decoding loop to generate."
            ),
        ),
        RefusalRule(
            f"`num_return_sequences` with {owner}",
            "it works on one answer for each request",
            "drop it",
            ModeRefused,
            lambda request: (request.setting("num_return_sequences") or 1) > 1,
            lambda request: (
                f"{author} works on one answer a request; "
                f"{_name_setting(request, 'num_return_sequences', 'num_return_sequences=1')}."
            ),
        ),
        RefusalRule(
            f"`return_dict_in_generate`, `output_scores` and `output_logits` with {owner}",
            "the scores would be those of other tokens",
            "drop them",
            ModeRefused,
            lambda request: _first_setting(request, NEED_FINAL_TOKENS) is not None,
            lambda request: _describe_forbidden(request, f"{author} cannot be combined with", NEED_FINAL_TOKENS),
        ),
    )


MODEL: tuple[RefusalRule[object], ...] = (
    RefusalRule(
        "a model without an autoregressive `generate`",
        "there is nothing to guard",
        "pass the model that generates",
        ModelRefused,
        _cannot_generate,
        lambda model: f"{type(model).__name__} has no autoregressive generate, so there is nothing to guard.",
    ),
)
"""About the model, when the guard is made."""

ARGUMENTS: tuple[RefusalRule[Mapping[str, Any]], ...] = (
    RefusalRule(
        "`custom_generate`",
        "it replaces the loop",
        "drop it",
        ModeRefused,
        lambda arguments: arguments.get("custom_generate") is not None,
        lambda _: "custom_generate replaces the decoding loop, so it cannot be guarded: drop it.",
    ),
    RefusalRule(
        "paged and continuous batching",
        "they bypass the loop",
        'drop `cache_implementation="paged"`',
        ModeRefused,
        lambda arguments: arguments.get("cache_implementation") == "paged",
        lambda _: "Paged and continuous batching bypass generate's loop: drop cache_implementation='paged'.",
    ),
    RefusalRule(
        "a cache that is none of transformers' own, such as tuples of keys and values",
        "nothing tells what it holds",
        "`transformers.DynamicCache()`, or no cache",
        ModeRefused,
        lambda arguments: _is_foreign(find_cache(arguments)),
        lambda arguments: (
            f"{name_of_cache(arguments)} is a {type(find_cache(arguments)).__name__}, which is no Cache of transformers: pass "
            "DynamicCache(), or leave it out."
        ),
    ),
    RefusalRule(
        "a cache that already holds tokens",
        "branches have no matching one",
        "pass the whole conversation",
        ModeRefused,
        lambda arguments: _holds_tokens(find_cache(arguments)),
        lambda arguments: (
            "generate() got a cache that already holds tokens; branches have no matching one. "
            f"Pass the whole conversation without {name_of_cache(arguments)}."
        ),
    ),
)
"""About the arguments of generate, before anything else."""

LOOP: tuple[RefusalRule[Request], ...] = (
    RefusalRule(
        f"{', '.join(f'`{name}`' for name in HUB_LOOPS)}, in the call or in a generation config",
        "each makes generate load another decoding loop from the hub",
        "drop it",
        ModeRefused,
        lambda request: _hub_loop(request) is not None,
        _describe_hub_loop,
    ),
)
"""About the decoding loop that the settings choose."""

SEARCH: tuple[RefusalRule[Request], ...] = (
    *_rules_of_whole_answers("A search"),
    RefusalRule(
        "an argument that lists something for each row, such as `adapter_names`, with a search",
        "its candidates have no entry in the list",
        "rows of one kind in a call of their own, without the list",
        ModeRefused,
        lambda request: request.row_list is not None,
        lambda request: (
            f"{request.row_list} lists something for each row of the batch, and the candidates of a search have no entry in it: pass the "
            "rows of each kind in a call of their own, without the list."
        ),
    ),
    RefusalRule(
        "a cache (`cache`, `past_key_values`) with a search",
        "candidates would be left in it",
        "drop it",
        ModeRefused,
        lambda request: find_cache(request.inputs) is not None,
        lambda request: f"A search would leave its candidates in the cache: drop {name_of_cache(request.inputs)}.",
    ),
    RefusalRule(
        "`do_sample=True` with a search",
        "the search chooses the tokens",
        "drop it",
        ModeRefused,
        lambda request: bool(request.setting("do_sample")) and not request.is_of_checkpoint("do_sample"),
        lambda _: "A search chooses the tokens itself: drop do_sample.",
    ),
    RefusalRule(
        f"{', '.join(f'`{name}`' for name in NEED_THE_LOOP)} with a search",
        "they need generate's own loop, which the search replaces",
        "drop one of them",
        ModeRefused,
        lambda request: _first_setting(request, NEED_THE_LOOP) is not None,
        lambda request: _describe_forbidden(
            request, "A search owns the decoding loop, which is needed by", NEED_THE_LOOP
        ),
    ),
    RefusalRule(
        "beams with a search",
        "the search has candidates of its own",
        "drop `num_beams`, or pass `num_beams=1` where the checkpoint's `generation_config` has beams",
        ModeRefused,
        lambda request: (request.setting("num_beams") or 1) > 1,
        lambda request: f"A search keeps its own candidates; {_name_setting(request, 'num_beams', 'num_beams=1')}.",
    ),
    RefusalRule(
        "`use_cache=False` with a search",
        "a search goes on from a cache",
        "drop it",
        ModeRefused,
        lambda request: request.setting("use_cache") is False,
        lambda request: f"A search needs a cache; {_name_setting(request, 'use_cache', 'use_cache=True')}.",
    ),
)
"""About the request, when a strategy of the stack searches."""

FINISH: tuple[RefusalRule[Request], ...] = _rules_of_whole_answers("A revision")
"""About the request, when a strategy of the stack revises answers."""

MIXED: tuple[RefusalRule[Request], ...] = (
    RefusalRule(
        f'{", ".join(f"`{name}`" for name in WHOLE_BATCH)} with `without_image="plain"`, where only some rows have an image',
        "they work on the whole batch, and the rows run in two parts",
        "drop it, or pass rows without an image in a call of their own",
        ModeRefused,
        lambda request: _first_whole_batch(request) is not None,
        lambda request: (
            "Only some rows of the batch have an image, so it runs in two parts, which cannot share "
            f"{_first_whole_batch(request)}: drop it, or pass the rows without an image in a call of their own."
        ),
    ),
    RefusalRule(
        "as many images as rows, where only some rows have an image and their prompts have places for fewer",
        "nothing tells whose images they are",
        "pass rows without an image in a call of their own",
        InputError,
        lambda request: find_pixel_axis(request) == "unknown",
        lambda request: (
            f"Only rows {', '.join(map(str, rows_with_image(request).nonzero().flatten().tolist()))} of the batch have an image, but "
            "the pixels have an entry for each row, so nothing tells what belongs to whom: pass the rows without an image in a call of "
            "their own."
        ),
    ),
)
"""About the request, when rows without an image run plain beside others."""

MAIN_PREPARED: tuple[RefusalRule[PreparedMain], ...] = (
    RefusalRule(
        "`prefill_chunk_size`",
        "the wrapper would see parts of a prompt",
        "drop it",
        ModeRefused,
        lambda subject: getattr(subject.main.settings, "prefill_chunk_size", None) is not None,
        lambda _: "Chunked prefill cannot be guarded: drop prefill_chunk_size.",
    ),
    RefusalRule(
        "assistants and prompt lookup with sliding windows, on older transformers",
        "rejected candidates cannot be taken back out",
        "upgrade, or generate without",
        ModeRefused,
        _cannot_roll_back,
        lambda _: (
            "This version of transformers cannot take rejected candidates back out of sliding-window layers: "
            "upgrade it, or generate without assistant and prompt lookup."
        ),
    ),
)
"""About main, once generate has prepared it."""

ATTENTION: tuple[RefusalRule[EditedAttention], ...] = (
    RefusalRule(
        "edits of attention to the image, without an image in the prompt",
        "there is nothing to attend to",
        "pass the image",
        StrategyRefused,
        _edits_absent_image,
        lambda _: "Attention to the image is to be edited, but the prompt holds no image.",
    ),
)
"""About the attention edits of the plan."""

BRANCH: tuple[RefusalRule[RequestedBranch], ...] = (
    RefusalRule(
        "edits of pictures or of features, and masked images, in a request with a video",
        "they are made for still images, and the video would stay as it is",
        "a strategy that edits pixels or drops the image, or a request without a video",
        ModeRefused,
        _edits_beside_video,
        lambda subject: (
            f"Branch {subject.branch.key!r} edits still images, but the request holds a video, which would stay as it is: use a "
            "strategy whose branches edit pixels or drop the image, or pass images alone."
        ),
    ),
    RefusalRule(
        "a branch without the image, where the frames of a video stand apart in the prompt and nothing tells their times from text",
        "the times that were written for them would be left in",
        "`Guard(model, processor)`, or a request without a video",
        ModeRefused,
        _drops_scattered_video,
        lambda subject: (
            f"Branch {subject.branch.key!r} drops images and videos, but the frames of a video stand apart in the prompt, and what "
            "was written for each of them, such as its time, is unknown; a tokenizer may tell: Guard(model, processor)."
        ),
    ),
    RefusalRule(
        "a branch about the image, without an image",
        "there is nothing to contrast with",
        "pass the image",
        StrategyRefused,
        lambda subject: subject.branch.needs_image and not (subject.request.has_image or subject.request.has_video),
        lambda subject: (
            f"Branch {subject.branch.key!r} needs an image, but generate() got no pixel_values. "
            "Pass the processor's full output: guard.generate(**inputs)."
        ),
    ),
    RefusalRule(
        "a branch without the image, where an encoder reads the image alone",
        "nothing is left to encode",
        "a strategy whose branches keep the image",
        ModelRefused,
        lambda subject: subject.branch.drops_image and subject.request.text_name == "decoder_input_ids",
        lambda subject: (
            f"Branch {subject.branch.key!r} drops the image, but the encoder of this model reads nothing else, so nothing is left "
            "without it: choose a strategy whose branches keep the image."
        ),
    ),
    RefusalRule(
        "a change of the prompt, where pictures are passed without one",
        "the model makes a prompt of its own",
        "`input_ids`",
        ModeRefused,
        lambda subject: (subject.branch.drops_image or bool(subject.branch.tokens)) and not subject.request.has_prompt,
        lambda subject: (
            f"Branch {subject.branch.key!r} changes the prompt, but there is none: pass input_ids, at least the token that every text "
            "of this model begins with."
        ),
    ),
    RefusalRule(
        "a change of the prompt round the image, where the config names no placeholder and there is no processor",
        "the prompt may hold tokens of the image that only the processor names",
        "`Guard(model, processor)`",
        ProcessorNeeded,
        _has_unnamed_image,
        lambda subject: (
            f"Branch {subject.branch.key!r} edits the prompt round the image, and this model's config does not name the tokens that "
            "stand for one; its processor may: Guard(model, processor)."
        ),
    ),
    RefusalRule(
        "token ids outside the model's vocabulary in a branch or an edit of the prompt",
        "the model has no embedding for them",
        "ids of this model's tokenizer: `gen.tokenize`",
        InputError,
        _strays,
        lambda subject: (
            f"Branch {subject.branch.key!r} puts token ids into the prompt that are outside the model's vocabulary of "
            f"{subject.request.vocabulary}: take them from gen.tokenize."
        ),
    ),
)
"""About a branch, before it is prepared."""

BRANCH_PREPARED: tuple[RefusalRule[PreparedBranch], ...] = (
    RefusalRule(
        "a branch that decodes on another module than main",
        "its tokens would not be main's",
        "another kind of branch",
        ModelRefused,
        lambda subject: subject.prepared.module is not subject.main.module,
        lambda subject: f"Branch {subject.branch.key!r} decodes on another module than main.",
    ),
    RefusalRule(
        "a branch whose prompt is too long for the model",
        "positions past the model's last one are undefined",
        "shorten the prompt or `max_new_tokens`",
        InputError,
        _overflows,
        _describe_overflow,
    ),
)
"""About a branch, once generate has prepared it."""

RULES: Mapping[str, tuple[RefusalRule[Any], ...]] = {
    "The model": MODEL,
    "Arguments": ARGUMENTS,
    "The decoding loop": LOOP,
    "Searches": SEARCH,
    "Revisions": FINISH,
    "Batches in which some rows have no image": MIXED,
    "Main, once prepared": MAIN_PREPARED,
    "Attention edits": ATTENTION,
    "Branches": BRANCH,
    "Branches, once prepared": BRANCH_PREPARED,
}
"""Every rule, by what it is about, in the order of the call."""

REFUSED_ELSEWHERE: Mapping[str, tuple[Refusal, ...]] = {
    "Inputs": (
        Refusal(
            "a call without `input_ids`",
            "branches cannot be made of embeddings",
            "pass the processor's full output",
            ModeRefused,
        ),
        Refusal(
            "hidden states of a prompt beside an argument that lists something for each row, such as `adapter_names`",
            "the model reads the list inside generate only",
            "rows of one kind in a call of their own, without the list",
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
