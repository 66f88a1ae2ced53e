"""Everything a guarded call refuses, as rules in the order they are checked; `docs/reference/refusals.md` is made of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lvlm_guard.cache_names import find_cache, name_of_cache
from lvlm_guard.call.refusal_conditions import (
    HUB_LOOPS,
    NEED_FINAL_TOKENS,
    NEED_THE_LOOP,
    WHOLE_BATCH,
    cannot_generate,
    cannot_roll_back,
    describe_forbidden,
    describe_hub_loop,
    describe_no_generate,
    describe_overflow,
    drops_scattered_video,
    edits_absent_image,
    edits_beside_video,
    first_setting,
    first_whole_batch,
    has_unnamed_image,
    holds_tokens,
    hub_loop,
    is_foreign,
    name_setting,
    overflows,
    strays,
)
from lvlm_guard.call.rules import (
    EditedAttention,
    PreparedBranch,
    PreparedMain,
    RefusalRule,
    RequestedBranch,
)
from lvlm_guard.errors import InputError, ModelRefused, ModeRefused, ProcessorNeeded, StrategyRefused
from lvlm_guard.request.requests import Request
from lvlm_guard.request.row_images import find_pixel_axis, rows_with_image


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
            f"an argument that lists something for each row, such as `adapter_names`, with {owner}",
            "it runs further rows, which have no entry in the list",
            "rows of one kind in a call of their own, without the list",
            ModeRefused,
            lambda request: request.row_list is not None,
            lambda request: (
                f"{author} runs further rows, which have no entry in {request.row_list}: pass the rows of each kind in a call of their "
                "own, without the list."
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
                f"{name_setting(request, 'num_return_sequences', 'num_return_sequences=1')}."
            ),
        ),
        RefusalRule(
            f"`return_dict_in_generate`, `output_scores` and `output_logits` with {owner}",
            "the scores would be those of other tokens",
            "drop them",
            ModeRefused,
            lambda request: first_setting(request, NEED_FINAL_TOKENS) is not None,
            lambda request: describe_forbidden(request, f"{author} cannot be combined with", NEED_FINAL_TOKENS),
        ),
    )


MODEL: tuple[RefusalRule[object], ...] = (
    RefusalRule(
        "a model without an autoregressive `generate`, `DataParallel` and `DistributedDataParallel` included",
        "there is nothing to guard",
        "pass the model that generates: `Guard(model.module, ...)`",
        ModelRefused,
        cannot_generate,
        describe_no_generate,
    ),
    RefusalRule(
        "a model without a `config`",
        "nothing tells its image placeholder, vocabulary and kind",
        "pass the model inside, or give the class the config of it",
        ModelRefused,
        lambda model: getattr(model, "config", None) is None,
        lambda model: (
            f"{type(model).__name__} has no config of transformers, which tells the image placeholder and the vocabulary: pass the "
            "model inside, or give it the config of that model."
        ),
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
        lambda arguments: is_foreign(find_cache(arguments)),
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
        lambda arguments: holds_tokens(find_cache(arguments)),
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
        lambda request: hub_loop(request) is not None,
        describe_hub_loop,
    ),
)
"""About the decoding loop that the settings choose."""

SEARCH: tuple[RefusalRule[Request], ...] = (
    *_rules_of_whole_answers("A search"),
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
        lambda request: first_setting(request, NEED_THE_LOOP) is not None,
        lambda request: describe_forbidden(
            request, "A search owns the decoding loop, which is needed by", NEED_THE_LOOP
        ),
    ),
    RefusalRule(
        "beams with a search",
        "the search has candidates of its own",
        "drop `num_beams`, or pass `num_beams=1` where the checkpoint's `generation_config` has beams",
        ModeRefused,
        lambda request: (request.setting("num_beams") or 1) > 1,
        lambda request: f"A search keeps its own candidates; {name_setting(request, 'num_beams', 'num_beams=1')}.",
    ),
    RefusalRule(
        "`use_cache=False` with a search",
        "a search goes on from a cache",
        "drop it",
        ModeRefused,
        lambda request: request.setting("use_cache") is False,
        lambda request: f"A search needs a cache; {name_setting(request, 'use_cache', 'use_cache=True')}.",
    ),
)
"""About the request, when a strategy of the stack searches."""

FINISH: tuple[RefusalRule[Request], ...] = _rules_of_whole_answers("A revision")
"""About the request, when a strategy of the stack revises answers."""

APART: tuple[RefusalRule[Request], ...] = (
    RefusalRule(
        '`synced_gpus`, as FSDP and ZeRO-3 set it, with `without_image="plain"`',
        "a process whose rows have no image would run fewer forwards than the others, and all would wait for each other",
        'drop `without_image="plain"`, and give every process rows with an image',
        ModeRefused,
        lambda request: bool(request.settings.get("synced_gpus")),
        lambda _: (
            'without_image="plain" runs other forwards for rows without an image, but with synced_gpus, which FSDP and ZeRO-3 set, '
            "every process has to run the same ones: leave it out, and give every process rows with an image."
        ),
    ),
)
"""About the request, where rows without an image are to run plain."""

MIXED: tuple[RefusalRule[Request], ...] = (
    RefusalRule(
        f'{", ".join(f"`{name}`" for name in WHOLE_BATCH)} with `without_image="plain"`, where only some rows have an image',
        "they work on the whole batch, and the rows run in two parts",
        "drop it, or pass rows without an image in a call of their own",
        ModeRefused,
        lambda request: first_whole_batch(request) is not None,
        lambda request: (
            "Only some rows of the batch have an image, so it runs in two parts, which cannot share "
            f"{first_whole_batch(request)}: drop it, or pass the rows without an image in a call of their own."
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
        cannot_roll_back,
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
        edits_absent_image,
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
        edits_beside_video,
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
        drops_scattered_video,
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
        has_unnamed_image,
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
        strays,
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
        overflows,
        describe_overflow,
    ),
)
"""About a branch, once generate has prepared it."""

RULES: Mapping[str, tuple[RefusalRule[Any], ...]] = {
    "The model": MODEL,
    "Arguments": ARGUMENTS,
    "The decoding loop": LOOP,
    "Searches": SEARCH,
    "Revisions": FINISH,
    "Rows without an image that are to run plain": APART,
    "Batches in which some rows have no image": MIXED,
    "Main, once prepared": MAIN_PREPARED,
    "Attention edits": ATTENTION,
    "Branches": BRANCH,
    "Branches, once prepared": BRANCH_PREPARED,
}
"""Every rule, by what it is about, in the order of the call."""
