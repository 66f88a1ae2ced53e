"""One guarded call from arguments to output: plan, branches, decode, report."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lvlm_guard import anatomy, fusion, requests
from lvlm_guard.edits import Branch
from lvlm_guard.effects import Effects
from lvlm_guard.errors import GuardError, InputError, ModelRefused, ModeRefused
from lvlm_guard.forward import Prepared, Scope, caches, capture, guarded, protocol
from lvlm_guard.forward.scope import ExecutorName
from lvlm_guard.generation import Generation
from lvlm_guard.plugins import StrategyCalls
from lvlm_guard.report import Forwards, Report, sequences
from lvlm_guard.requests import Request

SAME_MODULE_DRAFTS = ("assistant_model", "assistant_early_exit")  # their forwards may come before main's first
LENGTHS = ("max_length", "max_new_tokens", "min_length", "min_new_tokens")


@dataclass
class Plan:
    """The branches of a call: each key once, and who asked for it."""

    branches: dict[Hashable, Branch] = field(default_factory=dict)
    owners: dict[str, tuple[Hashable, ...]] = field(default_factory=dict)

    def add(self, strategy: str, branches: list[Any]) -> None:
        """Take up the branches of one strategy.

        Raises:
            InputError: Something other than a branch, or one key for two different branches.
        """
        for branch in branches:
            if not isinstance(branch, Branch):
                raise InputError(f"{strategy}.branches must yield Branch values, got {branch!r}.")
            known = self.branches.setdefault(branch.key, branch)
            if _kind(known) != _kind(branch):
                raise InputError(
                    f"Two different branches share the key {branch.key!r}; put what tells them apart into it."
                )
        self.owners[strategy] = tuple(branch.key for branch in branches)


def _kind(branch: Branch) -> tuple[Any, ...]:
    edits = tuple(edit is None for edit in (branch.pixels, branch.picture, branch.features))
    return (*edits, branch.image, branch.tokens, branch.seed)


class Session:
    """One guarded call.

    Args:
        generate: The model's own generate, unguarded.
        request: Model inputs and settings.
        calls: The strategies.
        executor: What the user asked for.
    """

    def __init__(
        self, generate: Callable[..., Any], request: Request, calls: StrategyCalls, executor: ExecutorName
    ) -> None:
        self._generate = generate
        self._request = request
        self._calls = calls
        self._executor = executor
        self._plan = Plan()
        answering = [name for name in calls.names if calls.implements("terms", name)]
        self._effects = Effects(answering, self._plan.branches)
        self.gen = _generation(request)

    @torch.no_grad()
    def run(self) -> tuple[Any, Report]:
        """Run the call; generate's output and the report."""
        started = time.perf_counter()
        self._calls.call("start", self.gen)
        for strategy, branches in self._calls.call("branches", self.gen).items():
            self._plan.add(strategy, branches)
        main, inputs, prepared = self._prepare()
        scope = Scope(main, prepared, self.gen, self._combine, self._executor)
        settings = self._request.settings
        if any(self._request.setting(name) for name in SAME_MODULE_DRAFTS):
            scope.main_cache = inputs.setdefault("past_key_values", main.cache)
        with guarded(scope):
            output = self._generate(**inputs, **settings)
        self._effects.check_finite()
        report = self._report(scope, output, time.perf_counter() - started)
        self._effects.warn(report.strategies)
        return output, report

    def _prepare(self) -> tuple[Prepared, dict[str, Any], dict[Hashable, Prepared]]:
        """Capture main, encode its images once, and prepare every branch on what it shares."""
        for branch in self._plan.branches.values():
            requests.refuse_missing_image(self._request, branch)
        main = capture(self._generate, self._request.without_cache, self._request.settings)
        _refuse_modes(main, self._request)
        encoded = self._encoded(main)
        inputs = dict(self._request.inputs)
        if encoded is not None:
            inputs = requests.share_encoded(inputs, encoded)
        prepared = {key: self._prepare_branch(branch, main, encoded) for key, branch in self._plan.branches.items()}
        return main, inputs, prepared

    def _encoded(self, main: Prepared) -> Mapping[str, Any] | None:
        """Main's encoded images before any expansion; None where the model encodes inside its forward."""
        if not protocol.takes_encoded_images(main.module):
            return None
        if main.expansion > 1:
            if not self._plan.branches:
                return None
            single = {**self._request.settings, "num_beams": 1, "num_return_sequences": 1}
            main = capture(self._generate, self._request.without_cache, single)
        encoded = main.kwargs.get("mm_encoder_outputs")
        return encoded if encoded and encoded.get("image") is not None else None

    def _prepare_branch(self, branch: Branch, main: Prepared, encoded: Mapping[str, Any] | None) -> Prepared:
        inputs = requests.branch_inputs(self._request, branch, encoded)
        settings = _branch_settings(self._request.settings, main)
        try:
            prepared = capture(self._generate, inputs, settings)
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

    def _report(self, scope: Scope, output: Any, seconds: float) -> Report:
        unfinished = _unfinished(scope.main, output)
        counts, prompt = scope.counts, scope.main.input_ids
        generated = sequences(output).shape[-1] - prompt.shape[1] if unfinished is not None else counts.positions
        return Report(
            strategies=tuple(
                self._effects.report(self.gen, name, self._plan.owners.get(name, ()), unfinished)
                for name in self._calls.names
            ),
            executor=scope.used if counts.steps else ("none" if not self._plan.branches else "prefill only"),
            reason=scope.reason or "no decode step was needed",
            forwards=Forwards(float(counts.prefill), counts.decode / counts.steps if counts.steps else 0.0),
            rows_per_forward=1 + len(self._plan.branches) if scope.used == "batched" else 1,
            rows=prompt.shape[0],
            tokens=generated,
            seconds=seconds,
        )


def _generation(request: Request) -> Generation:
    processor = request.processor
    return Generation(
        inputs=dict(request.inputs),
        input_ids=request.input_ids,
        attention_mask=request.attention_mask,
        image_mask=request.image_mask,
        has_image=request.has_image,
        tokenizer=getattr(processor, "tokenizer", processor),
    )


def _branch_settings(settings: Mapping[str, Any], main: Prepared) -> dict[str, Any]:
    """Settings that prepare a branch for as many new tokens as main may generate."""
    kept = {name: value for name, value in settings.items() if name not in LENGTHS}
    if (config := kept.get("generation_config")) is not None:
        config = kept["generation_config"] = copy.deepcopy(config)
        for name in LENGTHS:
            setattr(config, name, None)
    return {**kept, "max_new_tokens": _new_tokens(main)}


def _new_tokens(main: Prepared) -> int:
    return max(int(main.settings.max_length) - main.input_ids.shape[1], 1)


def _refuse_modes(main: Prepared, request: Request) -> None:
    if getattr(main.settings, "prefill_chunk_size", None) is not None:
        raise ModeRefused("Chunked prefill cannot be guarded: drop prefill_chunk_size.")
    assisted = any(request.setting(name) for name in (*SAME_MODULE_DRAFTS, "prompt_lookup_num_tokens"))
    if assisted and not caches.can_roll_back(main.cache):
        raise ModeRefused(
            "This version of transformers cannot take rejected candidates back out of sliding-window layers: "
            "upgrade it, or generate without assistant and prompt lookup."
        )


def _refuse_overflow(branch: Branch, prepared: Prepared, main: Prepared) -> None:
    limit = anatomy.maximum_length(main.module.config)
    new = _new_tokens(main)
    if limit is not None and prepared.length + new > limit >= main.length + new:
        raise InputError(
            f"Branch {branch.key!r} makes the prompt {prepared.length} tokens long; with {new} new tokens that passes "
            f"the model's {limit} positions. Shorten the prompt or max_new_tokens."
        )


def _unfinished(main: Prepared, output: Any) -> Tensor | None:
    """True where a generated position belongs to a row that had not ended `[rows, tokens]`; None with beams."""
    if (main.settings.num_beams or 1) > 1:
        return None
    tokens = sequences(output)[:, main.input_ids.shape[1] :]
    ends = main.settings.eos_token_id
    ids = [*(ends if isinstance(ends, list) else [ends]), main.settings.pad_token_id]
    ended = torch.isin(tokens, torch.tensor([one for one in ids if one is not None], device=tokens.device).long())
    return (ended.long().cumsum(1) - ended.long()) == 0
