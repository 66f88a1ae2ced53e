"""One guarded call from arguments to output: plan, branches, decode, report."""

from __future__ import annotations

import copy
import functools
import time
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lvlm_guard import anatomy
from lvlm_guard.arithmetic import fusion
from lvlm_guard.arithmetic.effects import CALLER, Effect, Effects, key_text
from lvlm_guard.call import finishing
from lvlm_guard.call.plan import Plan, checked
from lvlm_guard.call.report import Forwards, Report, StrategyReport
from lvlm_guard.errors import GuardError, InputError, ModelRefused, ModeRefused, StrategyRefused, UncompiledWarning
from lvlm_guard.forward import (
    GuardedDecode,
    GuardedLoop,
    LayerInterventions,
    PreparedDecode,
    caches,
    capture_decode,
    guarded,
    is_compiled,
    model_inputs,
    prompt_states,
)
from lvlm_guard.forward.executors.executor import ExecutorName
from lvlm_guard.forward.interventions import vision
from lvlm_guard.host.plugins import StrategyCalls
from lvlm_guard.outputs import sequences
from lvlm_guard.request import requests
from lvlm_guard.request.requests import Request
from lvlm_guard.strategy.branches import MAIN, Branch
from lvlm_guard.strategy.edits import AttentionCapture, AttentionEdit, HiddenEdit, Readout
from lvlm_guard.strategy.generation import Generation, PromptStates
from lvlm_guard.strategy.loops import Search

SAME_MODULE_DRAFTS = ("assistant_model", "assistant_early_exit")  # their forwards may come before main's first
LENGTHS = ("max_length", "max_new_tokens", "min_length", "min_new_tokens")


class Session:
    """One guarded call.

    Args:
        generate: The model's own generate, unguarded.
        request: Model inputs and settings.
        calls: The strategies.
        executor: What the user asked for.
    """

    def __init__(
        self,
        generate: Callable[..., Any],
        request: Request,
        calls: StrategyCalls,
        executor: ExecutorName,
        ask: Callable[[Sequence[str], int], list[str]] | None = None,
    ) -> None:
        self._generate = generate
        self._asked = request
        self._request = request
        self._calls = calls
        self._executor = executor
        self._plan = Plan()
        self._search: Search | None = None
        self._prefixes = 0
        self.gen = _generation(request)
        self._ask = ask

    @torch.no_grad()
    def run(self) -> tuple[Any, Report]:
        """Run the call; generate's output and the report."""
        started = time.perf_counter()
        self._begin()
        main = capture_decode(self._generate, self._request.without_cache, self._settings)
        _refuse_modes(main, self._request)
        self._describe(main)
        self._calls.call("start", self.gen)
        self._plan = Plan.of(self._call)
        answering = [name for name in self._calls.names if self._calls.implements("terms", name)]
        self._effects = Effects(answering, self._plan.branches)
        inside = self._inside(main)
        tower = [edit for edit in self._plan.all_of(HiddenEdit) if edit.tower == "vision"]
        _warn_if_uncompiled(main, hooked=not inside.is_empty or bool(tower) or self._prefixes > 0)
        with inside.installed(), vision.installed(main.module, tower, self.gen):
            scope, output = self._decode(main, inside, edited=bool(tower))
        self._effects.check_finite()
        unfinished = _unfinished(scope.main, output) if self._candidates == 1 else None
        effects = [
            self._effects.effect(self.gen, name, unfinished, edited=inside.had_effect(self._plan.edits.get(name, ())))
            for name in self._calls.names
        ]
        report = self._report(scope, output, effects, unfinished, time.perf_counter() - started)
        self._effects.warn(effects)
        return self._finished(main, output), report

    def _call(self, hook: str) -> dict[str, list[Any]]:
        return self._calls.call(hook, self.gen)

    def _begin(self) -> None:
        """Edit the request, and see whether a search takes over."""
        edits = [edit for found in checked(self._call, "edit_inputs").values() for edit in found]
        if edits:
            self._request = requests.edited(self._request, edits)
            _describe_request(self.gen, self._request)
        found = [search for values in checked(self._call, "search").values() for search in values]
        self._search = found[0] if found else None
        if self._search is not None:
            _refuse_search_modes(self._request)
        self._settings = _search_settings(self._request.settings, self._search)
        if self._calls.active("finish"):
            finishing.refuse_partial_answers(self._request, "A revision")

    def _describe(self, main: PreparedDecode) -> None:
        """What strategies may know once main is prepared."""
        self.gen.rows_per_request = main.rows_per_request
        self.gen.depth, self.gen.heads = anatomy.depth_and_heads(main.module)
        self.gen.tied = anatomy.ties_embeddings(main.module)
        self.gen.prefix = self._prefix

    def _prefix(self, branch: Branch | None) -> PromptStates:
        """Run the prompt of main or of a branch once, nothing edited inside."""
        self._prefixes += 1
        main = capture_decode(self._generate, self._request.without_cache, self._settings)
        prepared = main if branch is None else self._prepare_branch(branch, main, self._encoded(main))
        return prompt_states.run_prompt(prepared)

    def _inside(self, main: PreparedDecode) -> LayerInterventions:
        plan = self._plan
        hidden = [edit for edit in plan.all_of(HiddenEdit) if edit.tower == "decoder"]
        attention = plan.all_of(AttentionEdit)
        _refuse_without_image(attention, self.gen, main)
        return LayerInterventions(main.module, attention, plan.all_of(AttentionCapture), hidden, plan.all_of(Readout))

    def _decode(self, main: PreparedDecode, inside: LayerInterventions, *, edited: bool) -> tuple[GuardedDecode, Any]:
        main, inputs, prepared, late = self._prepare(main, edited=edited)
        owner = None if inside.is_empty else inside
        main_cache = None
        if any(self._request.setting(name) for name in SAME_MODULE_DRAFTS):
            main_cache = inputs.setdefault("past_key_values", main.cache)
        scope = GuardedDecode(main, prepared, self.gen, self._combine, self._executor, owner, late, main_cache)
        with guarded(scope), vision.encoding(self.gen, MAIN):
            if self._search is None:
                return scope, self._generate(**inputs, **self._settings)
            loop = functools.partial(self._searched, search=self._search, main=main)
            settings = {**self._settings, "num_beams": self._search.rows_per_request}
            return scope, self._generate(**inputs, **settings, custom_generate=loop)

    def _searched(
        self, model: Any, input_ids: Tensor, *, search: Search, main: PreparedDecode, **kwargs: Any
    ) -> Tensor:
        """Let a search drive the decode in place of generate's loop."""
        processors, criteria = kwargs.pop("logits_processor", None), kwargs.pop("stopping_criteria", None)
        settings, requests = kwargs.pop("generation_config"), self._request.input_ids.shape[0]
        begun = (main.input_ids, main.kwargs) if search.shared_prompt else (input_ids, kwargs)
        driver = GuardedLoop(
            PreparedDecode(model, *begun, settings), self.gen, requests, search.rows_per_request, processors, criteria
        )
        tokens: Any = search.run(driver)
        if not isinstance(tokens, Tensor) or tokens.is_floating_point() or tokens.shape[:-1] != (driver.requests,):
            raise InputError(f"A search must return token ids [{driver.requests}, tokens], got {_kind(tokens)}.")
        return torch.cat([input_ids[:: driver.rows_per_request], tokens.to(input_ids)], dim=1)

    def _finished(self, main: PreparedDecode, output: Any) -> Any:
        """The user's own prompt in front, and revised answers."""
        if self._request is not self._asked:
            output = finishing.with_prompt(output, self._request.input_ids.shape[1], self._asked.input_ids)
        if not self._calls.active("finish"):
            return output
        length = self._asked.input_ids.shape[1]
        self.gen.output_ids, self.gen.ask = output[:, length:], self._ask
        found = [one for values in checked(self._call, "finish").values() for one in values]
        return finishing.revised(output, length, found, self.gen.tokenizer, main.settings) if found else output

    def _prepare(
        self, main: PreparedDecode, *, edited: bool
    ) -> tuple[
        PreparedDecode, dict[str, Any], dict[Hashable, PreparedDecode], dict[Hashable, Callable[[], PreparedDecode]]
    ]:
        """Encode main's images once, and prepare every branch on what it shares."""
        for branch in self._plan.branches.values():
            requests.refuse_missing_image(self._request, branch)
        encoded = self._encoded(main)
        inputs = dict(self._request.inputs)
        branches = {key: one for key, one in self._plan.branches.items() if one.after_prefill is None}
        prepared = {key: self._prepare_branch(branch, main, encoded) for key, branch in branches.items()}
        late: dict[Hashable, Callable[[], PreparedDecode]] = {
            key: functools.partial(self._prepare_late, branch, main, encoded)
            for key, branch in self._plan.branches.items()
            if key not in branches
        }
        if edited:
            with vision.encoding(self.gen, MAIN):
                main = capture_decode(self._generate, self._request.without_cache, self._settings)
                encoded = self._encoded(main)
        if encoded is not None:
            inputs = requests.share_encoded(inputs, encoded)
        return main, inputs, prepared, late

    def _prepare_late(self, branch: Branch, main: PreparedDecode, encoded: Mapping[str, Any] | None) -> PreparedDecode:
        """Prepare a branch that is built from main's prefill."""
        assert branch.after_prefill is not None
        made = branch.after_prefill(self.gen)
        if not isinstance(made, Branch) or made.key != branch.key or made.after_prefill is not None:
            raise InputError(f"after_prefill of branch {branch.key!r} must return a Branch with the same key.")
        return self._prepare_branch(made, main, encoded)

    def _encoded(self, main: PreparedDecode) -> Mapping[str, Any] | None:
        """Main's encoded images before any expansion; None where the model encodes inside its forward."""
        if not model_inputs.takes_encoded_images(main.module):
            return None
        if main.rows_per_request > 1:
            if not self._plan.branches:
                return None
            single = {**self._settings, "num_beams": 1, "num_return_sequences": 1}
            main = capture_decode(self._generate, self._request.without_cache, single)
        encoded = main.kwargs.get("mm_encoder_outputs")
        return encoded if encoded and encoded.get("image") is not None else None

    def _prepare_branch(
        self, branch: Branch, main: PreparedDecode, encoded: Mapping[str, Any] | None
    ) -> PreparedDecode:
        inputs = requests.branch_inputs(self._request, branch, encoded)
        settings = _branch_settings(self._settings, main)
        try:
            with vision.encoding(self.gen, branch.key):
                prepared = capture_decode(self._generate, inputs, settings)
        except GuardError:
            raise
        except Exception as error:
            hint = " Choose a strategy whose branches keep the image." if branch.drops_image else ""
            raise ModelRefused(
                f"Branch {branch.key!r} cannot be prepared on {type(main.module).__name__}: {error}.{hint}"
            ) from error
        if prepared.module is not main.module:
            raise ModelRefused(f"Branch {branch.key!r} decodes on another module than main.")
        _refuse_overflow(branch, prepared, main)
        return prepared

    def _combine(self, gen: Generation) -> Tensor | None:
        """Ask for the terms, add them up, and note what changed; None leaves main's logits as they are."""
        terms = {name: found for name, found in self._calls.call("terms", gen).items() if found}
        combined = fusion.combine(gen, [term for found in terms.values() for term in found])
        assert gen.forward is not None
        gen.forward.combined = gen.logits() if combined is None else combined
        self._effects.note(gen, terms, combined)
        self._calls.call("observe", gen)
        return combined

    @property
    def _candidates(self) -> int:
        """Rows that a search keeps of each request."""
        return 1 if self._search is None else self._search.rows_per_request

    def _report(
        self, scope: GuardedDecode, output: Any, effects: Sequence[Effect], unfinished: Tensor | None, seconds: float
    ) -> Report:
        counts, prompt = scope.counts, scope.main.input_ids
        whole = unfinished is not None or self._search is not None
        generated = sequences(output).shape[-1] - prompt.shape[1] if whole else counts.positions
        return Report(
            strategies=tuple(self._strategy_report(effect) for effect in effects),
            executor=scope.choice.name if counts.steps else ("none" if not self._plan.branches else "prefill only"),
            reason=scope.choice.reason or "no decode step was needed",
            forwards=Forwards(
                float(counts.prefill + self._prefixes), counts.decode / counts.steps if counts.steps else 0.0
            ),
            rows_per_forward=(1 + len(self._plan.branches) if scope.choice.name == "batched" else 1) * self._candidates,
            rows=prompt.shape[0] if self._search is None else self._request.input_ids.shape[0] * self._candidates,
            tokens=generated,
            seconds=seconds,
        )

    def _strategy_report(self, effect: Effect) -> StrategyReport:
        branches = tuple(key_text(key) for key in self._plan.owners.get(effect.name, ()))
        return StrategyReport(effect.name, effect.tokens_changed, effect.positions, effect.had_effect, branches)


def _generation(request: Request) -> Generation:
    processor = request.processor
    pictures = request.pictures.pictures if request.pictures is not None else ()
    return Generation(
        inputs=dict(request.inputs),
        input_ids=request.input_ids,
        attention_mask=request.attention_mask,
        image_mask=request.image_mask,
        has_image=request.has_image,
        tokenizer=getattr(processor, "tokenizer", processor),
        image_token=anatomy.image_token_id(request.config),
        config=request.config,
        measure=fusion.ForwardStatistics,
        pictures=tuple(pictures) if len(pictures) == request.input_ids.shape[0] else None,
    )


def _describe_request(gen: Generation, request: Request) -> None:
    """Let the travelling object describe an edited request."""
    fresh = _generation(request)
    for name in ("inputs", "input_ids", "attention_mask", "image_mask"):
        setattr(gen, name, getattr(fresh, name))


def _search_settings(settings: Mapping[str, Any], search: Search | None) -> dict[str, Any]:
    """Settings that make generate prepare what a search begins with: a row for every request, or for every candidate."""
    if search is None:
        return dict(settings)
    return {**settings, "num_beams": 1 if search.shared_prompt else search.rows_per_request, "do_sample": False}


def _kind(value: Any) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _refuse_search_modes(request: Request) -> None:
    finishing.refuse_partial_answers(request, "A search")
    if request.inputs.get("past_key_values") is not None:
        raise ModeRefused("A search would leave its candidates in the cache: drop past_key_values.")
    if request.settings.get("do_sample"):
        raise ModeRefused("A search chooses the tokens itself: drop do_sample.")
    for name in (*SAME_MODULE_DRAFTS, "prompt_lookup_num_tokens", "stop_strings", "guidance_scale"):
        if request.setting(name):
            raise ModeRefused(f"A search owns the decoding loop, which {name} needs: drop one of them.")
    if (request.setting("num_beams") or 1) > 1:
        raise ModeRefused("A search keeps its own candidates: drop num_beams.")
    if request.setting("use_cache") is False:
        raise ModeRefused("A search needs a cache: drop use_cache=False.")


def _warn_if_uncompiled(main: PreparedDecode, *, hooked: bool) -> None:
    message = ""
    if hooked and is_compiled(main.module):
        message = (
            "The stack works inside the layers, where a compiled graph would miss it, so this call ran uncompiled."
        )
    elif getattr(main.module, "_compiled_call_impl", None) is not None:
        message = (
            "A guard stands between a compiled module and its forward, so this call ran uncompiled. Compile the forward: "
            "model.forward = torch.compile(model.forward)."
        )
    if message:
        warnings.warn(message, UncompiledWarning, stacklevel=CALLER)


def _refuse_without_image(edits: Sequence[AttentionEdit], gen: Generation, main: PreparedDecode) -> None:
    if any(edit.keys in ("image", "before_image") for edit in edits):
        in_prompt = bool(gen.image_mask.any())
        if not in_prompt and not anatomy.attends_across(main.module):
            raise StrategyRefused("Attention to the image is to be edited, but the prompt holds no image.")


def _branch_settings(settings: Mapping[str, Any], main: PreparedDecode) -> dict[str, Any]:
    """Settings that prepare a branch for as many new tokens as main may generate."""
    kept = {name: value for name, value in settings.items() if name not in LENGTHS}
    if (config := kept.get("generation_config")) is not None:
        config = kept["generation_config"] = copy.deepcopy(config)
        for name in LENGTHS:
            setattr(config, name, None)
    return {**kept, "max_new_tokens": _new_tokens(main)}


def _new_tokens(main: PreparedDecode) -> int:
    return max(int(main.settings.max_length) - main.input_ids.shape[1], 1)


def _refuse_modes(main: PreparedDecode, request: Request) -> None:
    if getattr(main.settings, "prefill_chunk_size", None) is not None:
        raise ModeRefused("Chunked prefill cannot be guarded: drop prefill_chunk_size.")
    assisted = any(request.setting(name) for name in (*SAME_MODULE_DRAFTS, "prompt_lookup_num_tokens"))
    if assisted and not caches.can_roll_back(main.cache):
        raise ModeRefused(
            "This version of transformers cannot take rejected candidates back out of sliding-window layers: "
            "upgrade it, or generate without assistant and prompt lookup."
        )


def _refuse_overflow(branch: Branch, prepared: PreparedDecode, main: PreparedDecode) -> None:
    limit = anatomy.maximum_length(main.module.config)
    new = _new_tokens(main)
    if limit is not None and prepared.length + new > limit >= main.length + new:
        raise InputError(
            f"Branch {branch.key!r} makes the prompt {prepared.length} tokens long; with {new} new tokens that passes "
            f"the model's {limit} positions. Shorten the prompt or max_new_tokens."
        )


def _unfinished(main: PreparedDecode, output: Any) -> Tensor | None:
    """True where a generated position belongs to a row that had not ended `[rows, tokens]`; None with beams."""
    if (main.settings.num_beams or 1) > 1:
        return None
    tokens = sequences(output)[:, main.input_ids.shape[1] :]
    ends = main.settings.eos_token_id
    ids = [*(ends if isinstance(ends, list) else [ends]), main.settings.pad_token_id]
    ended = torch.isin(tokens, torch.tensor([one for one in ids if one is not None], device=tokens.device).long())
    return (ended.long().cumsum(1) - ended.long()) == 0
