"""The fifth phase: a decoded call as a report."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence

from torch import Tensor

from lvlm_guard.arithmetic.effects import GUARDED_CHOICES, Effect, format_key
from lvlm_guard.call.answered import SHARED
from lvlm_guard.call.answers import FinishedOutput
from lvlm_guard.call.decoding import DecodedCall
from lvlm_guard.call.plan import INNER_HOOKS, Edit
from lvlm_guard.call.planning import PlannedCall
from lvlm_guard.call.provenance import describe_origin, describe_parameters
from lvlm_guard.call.report import Forwards, Report, RequestReport, StrategyReport
from lvlm_guard.call.request_reports import mark_unfinished, report_requests
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


def report_call(decoded: DecodedCall, finished: FinishedOutput) -> Report:
    """Return what the call did, and warn about strategies without effect."""
    revised = finished.answers_revised
    planned, unfinished = decoded.prepared.planned, _find_unfinished(decoded)
    acted = {
        name: _has_acted(planned, name, answers_revised=revised.get(name, 0)) for name in planned.call.strategies.names
    }
    effects = _measure_effects(decoded, unfinished, acted)
    requests = report_requests(decoded, are_choices_known=unfinished is not None and not any(acted.values()))
    report = _build_report(decoded, effects, requests, finished)
    without = [effect.name for effect in effects if not effect.had_effect]
    decoded.effects.warn_without_effect([name for name in without if _is_effect_expected(planned, name)])
    return report


def _measure_effects(decoded: DecodedCall, unfinished: Tensor | None, acted: Mapping[str, bool]) -> list[Effect]:
    """Return the effect of each strategy, in stack order; 0 changed tokens are said only where best tokens decide."""
    gen = decoded.prepared.planned.call.gen
    effects = [
        decoded.effects.measure_effect(gen, name, unfinished, acted=has_acted) for name, has_acted in acted.items()
    ]
    doubtful = [effect.name for effect in effects if effect.had_effect and effect.tokens_changed == 0]
    if not doubtful or _best_tokens_decide(decoded, unfinished):
        return effects
    return [
        dataclasses.replace(effect, tokens_changed=None) if effect.name in doubtful else effect for effect in effects
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
    strategies, edits = planned.call.strategies, planned.plan.edits.get(name, ())
    if strategies.implements("finish", name) and name not in strategies.active("finish"):
        return True
    only_watches = bool(edits) and all(_only_watches(edit) for edit in edits)
    # a revision may remember what it reads when it finishes
    may_watch = only_watches or strategies.implements("finish", name)
    hooks = set(ACTING_HOOKS) - set(INNER_HOOKS if may_watch else ())
    return any(strategies.implements(hook, name) for hook in hooks)


def _only_watches(edit: Edit) -> bool:
    return isinstance(edit, (AttentionCapture, Readout)) or edit.observes


def _best_tokens_decide(decoded: DecodedCall, unfinished: Tensor | None) -> bool:
    """Return whether every token of the answers is the best one by logits, before processors, and stays so under them."""
    settings, rows = decoded.prepared.main.settings, decoded.prepared.planned.call.gen.rows
    request = decoded.prepared.planned.request
    if settings.do_sample or unfinished is None or GUARDED_CHOICES not in rows:
        return False
    if any((request.setting(name) or neutral) != neutral for name, neutral in RESCALING.items()):
        return False
    tokens, best = decoded.generated, rows[GUARDED_CHOICES]
    length = min(best.shape[1], tokens.shape[1])
    differs = best[:, :length] != tokens[:, :length].to(best.device)
    return not bool((differs & unfinished[:, :length].to(best.device)).any())


def _build_report(
    decoded: DecodedCall,
    effects: Sequence[Effect],
    requests: tuple[RequestReport, ...],
    finished: FinishedOutput,
) -> Report:
    planned, counts = decoded.prepared.planned, decoded.counts
    searched = planned.search is not None
    is_whole = searched or not _moves_rows(decoded)
    steps, revised = counts.steps, finished.answers_revised
    return Report(
        strategies=tuple(_report_strategy(decoded, effect, revised.get(effect.name, 0)) for effect in effects),
        executor=decoded.executor if steps else ("prefill only" if planned.plan.branches else "none"),
        reason=decoded.reason or "no decode step was needed",
        forwards=Forwards(
            float(counts.prefill + len(planned.prompt_runs.keys) + (planned.sharing.runs if planned.sharing else 0)),
            counts.decode / steps if steps else 0.0,
        ),
        rows_per_forward=_count_versions(decoded) * planned.candidates,
        rows=planned.request.input_ids.shape[0] * planned.candidates
        if searched
        else decoded.prepared.main.input_ids.shape[0],
        tokens=decoded.generated.shape[-1] if is_whole else counts.positions,
        seconds=time.perf_counter() - planned.call.started,
        results=planned.call.gen.results.to_dict(),
        requests=requests,
        origin=describe_origin(planned.call.request.config),
        answer_start=finished.answer_start,
        prompts=_describe_prompts(planned),
        questions=finished.questions,
    )


def _describe_prompts(planned: PlannedCall) -> dict[str, str]:
    """Return how the prompts of a call on a look ran, by key."""
    reasons = planned.sharing.reasons if planned.sharing is not None else {}
    return {key if key == MAIN else format_key(key): reason or SHARED for key, reason in reasons.items()}


def _report_strategy(decoded: DecodedCall, effect: Effect, answers_revised: int) -> StrategyReport:
    planned = decoded.prepared.planned
    return StrategyReport(
        effect.name,
        effect.tokens_changed,
        effect.positions,
        effect.had_effect,
        tuple(format_key(key) for key in planned.plan.branch_keys.get(effect.name, ())),
        answers_revised,
        describe_parameters(planned.call.strategies.find(effect.name)),
    )


def _count_versions(decoded: DecodedCall) -> int:
    """Return how many versions of a row one decode forward had: main and the branches in one batch, or main alone."""
    return 1 + len(decoded.prepared.planned.plan.branches) if decoded.executor == "batched" else 1


def _find_unfinished(decoded: DecodedCall) -> Tensor | None:
    """Return where a generated position belongs to a row that had not ended, bool `[rows, tokens]`; None where rows move."""
    return None if _moves_rows(decoded) else mark_unfinished(decoded)


def _moves_rows(decoded: DecodedCall) -> bool:
    """Return whether rows change places, as with beams and with the candidates of a search."""
    return decoded.prepared.planned.candidates > 1 or (decoded.prepared.main.settings.num_beams or 1) > 1
