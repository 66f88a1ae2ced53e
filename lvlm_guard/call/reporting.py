"""The fifth phase: a decoded call as a report."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lvlm_guard.arithmetic.effects import Effect, format_key
from lvlm_guard.call.decoding import DecodedCall
from lvlm_guard.call.planning import PlannedCall
from lvlm_guard.call.report import Forwards, Report, StrategyReport
from lvlm_guard.outputs import sequences


def report_call(decoded: DecodedCall, revised: Mapping[str, int]) -> Report:
    """Return what the call did, and warn about strategies without effect; `revised` counts answers by strategy."""
    unfinished = _find_unfinished(decoded)
    effects = _measure_effects(decoded, unfinished, revised)
    report = _build_report(decoded, effects, unfinished, revised)
    decoded.effects.warn_without_effect(effects)
    return report


def _measure_effects(decoded: DecodedCall, unfinished: Tensor | None, revised: Mapping[str, int]) -> list[Effect]:
    """Return the effect of each strategy, in the order of the stack."""
    planned = decoded.prepared.planned
    return [
        decoded.effects.measure_effect(
            planned.call.gen, name, unfinished, acted=_find_action(planned, name, answers_revised=revised.get(name, 0))
        )
        for name in planned.call.strategies.names
    ]


def _find_action(planned: PlannedCall, name: str, *, answers_revised: int) -> bool | None:
    """Return whether a strategy changed anything otherwise than by terms; None where it tried nothing of the kind."""
    acts = (
        planned.input_edits.get(name),
        planned.interventions.had_effect(planned.plan.edits.get(name, ())),
        True if name == planned.searching or answers_revised else None,
    )
    return any(acts) if any(act is not None for act in acts) else None


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
