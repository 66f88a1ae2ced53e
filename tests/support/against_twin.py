"""Runs a strategy in a ragged batch, with beams and by both executors, and compares every step with its twin."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from gold import SUPPRESSED
from torch import Tensor

from lvlm_guard import Guard, NoEffectWarning
from lvlm_guard.testing import Recorder, tiny
from lvlm_guard.testing.contract import Words, left_padded
from lvlm_guard.testing.tiny import inputs_for

TOLERANCE = 2e-4
DEMOTED = -1e3
ARCHITECTURES = ("llava", "qwen2_vl", "gemma3")
"""Plain placeholders, packed patches, sliding windows."""
OF_STRATEGIES = ("llava", "qwen2_vl", pytest.param("gemma3", marks=pytest.mark.slow))
"""Those on which each strategy is compared with its twin: sliding windows are the core's to get right, and a slow test here."""

Gold = Callable[[Any, Mapping[str, Tensor], Sequence[int]], "tuple[Tensor, Tensor]"]
"""(model, inputs of one prompt, generated tokens) -> (logits of the formula [vocab], plain logits [vocab])."""

MODES = {
    "batched": ("auto", {}),
    "sequential": ("sequential", {}),
    "beams": ("auto", {"num_beams": 3}),
}


@torch.no_grad()
def check(strategies: Sequence[Any], gold: Gold, architecture: str, *, tokens: int = 4, power: float = 0.1) -> float:
    """Assert that every mode agrees with the gold at every step; returns the smallest effect over steps, printed too."""
    model, _ = tiny(architecture)
    singles = [inputs_for(architecture, model, 1, text=text, seed=text) for text in (3, 6, 11)]
    known: dict[Any, tuple[Tensor, Tensor]] = {}
    effects, errors = [], []
    for mode, (executor, settings) in MODES.items():
        for row, ids, scores in _run(model, left_padded(singles), strategies, executor, tokens, settings):
            prefix = tuple(ids)
            if (row, prefix) not in known:
                known[row, prefix] = gold(model, singles[row], prefix)
            wanted, plain = known[row, prefix]
            error, effect = _compare(scores, wanted, plain, beams="num_beams" in settings)
            assert error <= TOLERANCE, f"{architecture} {mode} row {row} step {len(prefix)}: off by {error:.2e}"
            errors.append(error)
            effects.append(effect)
    print(f"{architecture}: error {max(errors):.1e}, effect {min(effects):.2f} to {max(effects):.2f}")
    assert max(effects) > power, f"{architecture}: the strategy changes logits by {max(effects):.3f} only"
    return min(effects)


def _run(
    model: Any, batch: Any, strategies: Sequence[Any], executor: Any, tokens: int, settings: Mapping[str, Any]
) -> list[tuple[int, list[int], Tensor]]:
    """(row of the batch, generated tokens, scores) of every step."""
    recorder = Recorder()
    guard = Guard(model, Words(), list(strategies), executor=executor)
    base = {"max_new_tokens": tokens, "do_sample": False, "suppress_tokens": SUPPRESSED}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoEffectWarning)
        guard.generate(**batch, **base, **settings, logits_processor=[recorder])
    start, beams = recorder.seen[0][0].shape[1], settings.get("num_beams", 1)
    return [
        (row // beams, ids[row, start:].tolist(), scores[row])
        for ids, scores in recorder.seen
        for row in range(ids.shape[0])
    ]


def _compare(scores: Tensor, wanted: Tensor, plain: Tensor, *, beams: bool) -> tuple[float, float]:
    open_ = torch.ones_like(wanted, dtype=torch.bool)
    open_[SUPPRESSED] = False
    effect = float((wanted - plain)[open_ & (wanted > DEMOTED)].abs().max())
    wanted = wanted.log_softmax(-1) if beams else wanted
    alive = open_ & (wanted > DEMOTED)
    assert bool((scores[open_ & ~alive] < DEMOTED / 2).all()), "a token that the formula demotes or removes is alive"
    return float((scores - wanted)[alive].abs().max()), effect
