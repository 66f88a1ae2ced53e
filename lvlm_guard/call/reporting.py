"""The fifth phase: a decoded call as a report."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lvlm_guard.arithmetic.effects import GUARDED_CHOICES, Effect, format_key
from lvlm_guard.call.decoding import DecodedCall
from lvlm_guard.call.plan import Edit
from lvlm_guard.call.planning import PlannedCall
from lvlm_guard.call.report import Forwards, Report, StrategyReport
from lvlm_guard.outputs import sequences
from lvlm_guard.strategy.branches import MAIN
from lvlm_guard.strategy.edits import AttentionCapture, Readout

ACTING_HOOKS = ("edit_inputs", "search", "attention", "hidden", "terms")
"""Hooks of which something is expected in every call; `finish` may find nothing to revise."""
RESCALING = {
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "guidance_scale": 1.0,
    "sequence_bias": None,
    "exponential_decay_length_penalty": None,
    "watermarking_config": None,
    "logits_processor": None,
}
"""Settings under which more than the best token decides, with their neutral values."""


def report_call(decoded: DecodedCall, revised: Mapping[str, int]) -> Report:
    """Return what the call did, and warn about strategies without effect; `revised` counts answers by strategy."""
    unfinished = _find_unfinished(decoded)
    effects = _measure_effects(decoded, unfinished, revised)
    report = _build_report(decoded, effects, unfinished, revised)
    decoded.effects.warn_without_effect(
        [
            effect.name
            for effect in effects
            if not effect.had_effect and _is_effect_expected(decoded.prepared.planned, effect.name)
        ]
    )
    return report


def _measure_effects(decoded: DecodedCall, unfinished: Tensor | None, revised: Mapping[str, int]) -> list[Effect]:
    """Return the effect of each strategy, in the order of the stack; 0 changed tokens are said only where nothing else decides."""
    planned = decoded.prepared.planned
    effects = [
        decoded.effects.measure_effect(
            planned.call.gen, name, unfinished, acted=_has_acted(planned, name, answers_revised=revised.get(name, 0))
        )
        for name in planned.call.strategies.names
    ]
    if all(effect.tokens_changed != 0 or not effect.had_effect for effect in effects):
        return effects
    if _best_tokens_decide(decoded, unfinished):
        return effects
    return [
        dataclasses.replace(effect, tokens_changed=None) if effect.had_effect and effect.tokens_changed == 0 else effect
        for effect in effects
    ]


def _has_acted(planned: PlannedCall, name: str, *, answers_revised: int) -> bool:
    """Return whether a strategy changed anything otherwise than by its terms."""
    edits = [edit for edit in planned.plan.edits.get(name, ()) if not _is_seen_by_terms(planned, name, edit)]
    return (
        planned.input_edits.get(name, False)
        or bool(planned.interventions.had_effect(edits))
        or name == planned.searching
        or answers_revised > 0
    )


def _is_seen_by_terms(planned: PlannedCall, name: str, edit: Edit) -> bool:
    """Return whether an edit reaches main only through the strategy's own terms: it edits a branch that nobody else asks for."""
    owners = [owner for owner, keys in planned.plan.branch_keys.items() if getattr(edit, "branch", MAIN) in keys]
    return owners == [name] and planned.call.strategies.implements("terms", name)


def _is_effect_expected(planned: PlannedCall, name: str) -> bool:
    """Return whether a strategy that changed nothing deserves a warning: not one that only watches, or that revised nothing."""
    strategies = planned.call.strategies
    edits = planned.plan.edits.get(name, ())
    if edits and all(isinstance(edit, (AttentionCapture, Readout)) for edit in edits):
        return strategies.implements("terms", name)
    is_switched_off = strategies.implements("finish", name) and name not in strategies.active("finish")
    return is_switched_off or any(strategies.implements(hook, name) for hook in ACTING_HOOKS)


def _best_tokens_decide(decoded: DecodedCall, unfinished: Tensor | None) -> bool:
    """Return whether every token of the answers is the best one by logits, before processors, and stays so under them."""
    settings, rows = decoded.prepared.main.settings, decoded.prepared.planned.call.gen.rows
    request = decoded.prepared.planned.request
    if settings.do_sample or unfinished is None or GUARDED_CHOICES not in rows:
        return False
    if any((request.setting(name) or neutral) != neutral for name, neutral in RESCALING.items()):
        return False
    tokens = sequences(decoded.output)[:, decoded.prepared.main.input_ids.shape[1] :]
    best = rows[GUARDED_CHOICES]
    length = min(best.shape[1], tokens.shape[1])
    differs = best[:, :length] != tokens[:, :length].to(best.device)
    return not bool((differs & unfinished[:, :length].to(best.device)).any())


def _build_report(
    decoded: DecodedCall, effects: Sequence[Effect], unfinished: Tensor | None, revised: Mapping[str, int]
) -> Report:
    planned, counts = decoded.prepared.planned, decoded.counts
    prompt = decoded.prepared.main.input_ids
    searched = planned.search is not None
    is_whole = unfinished is not None or searched
    steps = counts.steps
    return Report(
        strategies=tuple(_report_strategy(decoded, effect, revised.get(effect.name, 0)) for effect in effects),
        executor=decoded.executor if steps else ("prefill only" if planned.plan.branches else "none"),
        reason=decoded.reason or "no decode step was needed",
        forwards=Forwards(
            float(counts.prefill + len(planned.prompt_runs.keys)), counts.decode / steps if steps else 0.0
        ),
        rows_per_forward=_count_versions(decoded) * planned.candidates,
        rows=planned.request.input_ids.shape[0] * planned.candidates if searched else prompt.shape[0],
        tokens=sequences(decoded.output).shape[-1] - prompt.shape[1] if is_whole else counts.positions,
        seconds=time.perf_counter() - planned.call.started,
        results=planned.call.gen.results.to_dict(),
    )


def _report_strategy(decoded: DecodedCall, effect: Effect, answers_revised: int) -> StrategyReport:
    keys = decoded.prepared.planned.plan.branch_keys.get(effect.name, ())
    branches = tuple(format_key(key) for key in keys)
    return StrategyReport(
        effect.name, effect.tokens_changed, effect.positions, effect.had_effect, branches, answers_revised
    )


def _count_versions(decoded: DecodedCall) -> int:
    """Return how many versions of a row one decode forward had: main and the branches in one batch, or main alone."""
    return 1 + len(decoded.prepared.planned.plan.branches) if decoded.executor == "batched" else 1


def _find_unfinished(decoded: DecodedCall) -> Tensor | None:
    """Return where a generated position belongs to a row that had not ended, bool `[rows, tokens]`.

    None with beams and with the candidates of a search, where rows change places.
    """
    main = decoded.prepared.main
    if decoded.prepared.planned.candidates > 1 or (main.settings.num_beams or 1) > 1:
        return None
    tokens = sequences(decoded.output)[:, main.input_ids.shape[1] :]
    ends = main.settings.eos_token_id
    ids = [*(ends if isinstance(ends, list) else [ends]), main.settings.pad_token_id]
    ended = torch.isin(tokens, torch.tensor([token for token in ids if token is not None], device=tokens.device).long())
    return (ended.long().cumsum(1) - ended.long()) == 0
