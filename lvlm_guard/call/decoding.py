"""The fourth phase: generate decodes, with the terms of the strategies in main's logits."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lvlm_guard.arithmetic.effects import EffectRecorder
from lvlm_guard.cache_names import find_cache, name_of_cache
from lvlm_guard.call.plan import collect_values
from lvlm_guard.call.preparing import PreparedCall
from lvlm_guard.call.refusal_conditions import DRAFTS_OF_SAME_MODULE, first_setting
from lvlm_guard.call.terms import combine_terms
from lvlm_guard.errors import PluginRejected
from lvlm_guard.forward import GuardedDecode, GuardedLoop, PreparedDecode, run_guarded
from lvlm_guard.forward.decode import Counts
from lvlm_guard.forward.executors.batch_obstacles import BatchScope
from lvlm_guard.forward.interventions import vision
from lvlm_guard.forward.kept_prompts import KeptPrompt
from lvlm_guard.forward.preparation import prepare_cache
from lvlm_guard.host.plugins import StrategyCalls
from lvlm_guard.outputs import sequences
from lvlm_guard.protocols import Cache, Model
from lvlm_guard.strategy.branches import MAIN
from lvlm_guard.strategy.generation import Generation
from lvlm_guard.strategy.terms import Term


@dataclass(frozen=True, eq=False)
class DecodedCall:
    """A call that was decoded.

    Args:
        prepared: The call as prepared.
        output: What generate returned.
        effects: What happened to main's logits.
        executor: The executor that decoded the branches, `none` when nothing was decoded with them.
        reason: Why that executor; empty when no decode step was needed.
        counts: What ran.
        answer_start: Where the answers begin in each row of the output.
        kept_prompts: What the prefill left of main and of branches, where a strategy may ask questions.
    """

    prepared: PreparedCall
    output: Any
    effects: EffectRecorder
    executor: str
    reason: str
    counts: Counts
    answer_start: int
    kept_prompts: Mapping[Hashable, KeptPrompt | str] = field(default_factory=dict)

    @property
    def generated(self) -> Tensor:
        """Generated ids `[rows, tokens]`, without what the output repeats of a prompt."""
        return sequences(self.output)[:, self.answer_start :]


def decode(prepared: PreparedCall) -> DecodedCall:
    """Run generate, guarded, while the interventions of the call are installed.

    Raises:
        ModeRefused: The executor asked for would not be exact.
        NonFiniteLogits: The model or a branch produced NaN in the prefill.
        PluginRejected: A term, or what a search returns, does not fit.
        InputError: An edit does not fit.
    """
    planned, call = prepared.planned, prepared.planned.call
    effects = EffectRecorder(_strategies_with_terms(call.strategies), planned.plan.branches)
    inputs, main_cache = _give_cache(prepared)
    guarded_decode = _build_decode(prepared, effects, main_cache)
    settings = _loop_settings(prepared, compiles_forward=guarded_decode.compiles_forward)
    if main_cache is not None:
        settings.pop("cache_implementation", None)  # it is made, and generate takes one of both
    generate = functools.partial(call.generate, **inputs, **settings)
    with vision.encoding(call.gen, MAIN):
        output = run_guarded(guarded_decode, generate)
    start = guarded_decode.find_answers(sequences(output), planned.request.input_ids)
    choice = guarded_decode.choice
    counts, kept_prompts = guarded_decode.counts, guarded_decode.kept_prompts
    return DecodedCall(prepared, output, effects, choice.name, choice.reason, counts, start, kept_prompts)


def _give_cache(prepared: PreparedCall) -> tuple[dict[str, Any], Cache | None]:
    """Return the inputs of generate, and main's cache where drafts of the same module may come before main's first forward."""
    inputs, request = dict(prepared.inputs), prepared.planned.request
    if first_setting(request, DRAFTS_OF_SAME_MODULE) is None:
        return inputs, None
    cache = find_cache(inputs)
    if cache is None:
        prepared_cache = prepared.main.cache  # some versions of transformers leave it to the model
        cache = (
            prepare_cache(prepared.planned.call.generate, inputs, request.settings)
            if prepared_cache is None
            else prepared_cache
        )
        inputs[name_of_cache(prepared.main.kwargs)] = cache
    return inputs, cache


def _build_decode(prepared: PreparedCall, effects: EffectRecorder, main_cache: Cache | None) -> GuardedDecode:
    """Return the decode whose forwards belong to this call."""
    call, inside = prepared.planned.call, prepared.planned.interventions.inside
    request = prepared.planned.request
    return GuardedDecode(
        prepared.main,
        prepared.branches,
        call.gen,
        functools.partial(_combine_terms, call.strategies, effects),
        call.executor,
        None if inside.is_empty else inside,
        prepared.late_branches,
        main_cache,
        BatchScope(request.row_list, in_step=bool(request.settings.get("synced_gpus"))),
        keeps_prompts=call.may_ask,
    )


def _loop_settings(prepared: PreparedCall, *, compiles_forward: bool) -> dict[str, Any]:
    """Return the settings of the loop, or of the search in its place; generate compiles nothing where the decode does."""
    settings, search = prepared.planned.preparation.settings, prepared.planned.search
    if search is None:
        return {**settings, "disable_compile": True} if compiles_forward else dict(settings)
    loop = functools.partial(_run_search, prepared)
    return {**settings, "num_beams": search.rows_per_request, "custom_generate": loop}


def _strategies_with_terms(strategies: StrategyCalls) -> Sequence[str]:
    return [name for name in strategies.names if strategies.implements("terms", name)]


def _combine_terms(strategies: StrategyCalls, effects: EffectRecorder, gen: Generation) -> Tensor | None:
    """Ask for the terms, add them up, and record what changed; None leaves main's logits as they are."""
    yielded = collect_values(lambda hook: strategies.call(hook, gen), "terms")
    terms: Mapping[str, list[Term]] = {name: values for name, values in yielded.items() if values}
    combined = combine_terms(gen, terms)
    assert gen.forward is not None
    gen.forward.combined = gen.logits() if combined is None else combined
    effects.record_forward(gen, terms, combined)
    strategies.call("observe", gen)
    return combined


def _run_search(prepared: PreparedCall, model: Model, input_ids: Tensor, **kwargs: Any) -> Tensor:
    """Let a search drive the decode in place of generate's loop; prompts and tokens `[requests, length]`."""
    planned, main, search = prepared.planned, prepared.main, prepared.planned.search
    assert search is not None
    processors, criteria = kwargs.pop("logits_processor", None), kwargs.pop("stopping_criteria", None)
    settings, requests = kwargs.pop("generation_config"), planned.request.input_ids.shape[0]
    prompt = (main.input_ids, main.kwargs) if search.shared_prompt else (input_ids, kwargs)
    loop = GuardedLoop(
        PreparedDecode(model, *prompt, settings),
        planned.call.gen,
        requests,
        search.rows_per_request,
        processors,
        criteria,
    )
    tokens: Any = search.run(loop)
    if not _holds_ids(tokens, loop.requests, planned.request.vocabulary):
        (name,) = planned.call.strategies.active("search")[-1:]
        raise PluginRejected(
            f"{name}.search must return token ids [{loop.requests}, tokens] of the vocabulary, got {_describe(tokens)}."
        )
    return torch.cat([input_ids[:: loop.rows_per_request], tokens.to(input_ids)], dim=1)


def _holds_ids(tokens: Any, requests: int, vocabulary: int | None) -> bool:
    """Whether a value is a tensor of token ids `[requests, tokens]`."""
    if not isinstance(tokens, Tensor) or tokens.dtype not in (torch.int64, torch.int32):
        return False
    if tokens.shape[:-1] != (requests,) or tokens.device.type == "meta":
        return False
    return not bool(((tokens < 0) | (tokens >= (vocabulary or 2**31))).any())


def _describe(value: object) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
