"""Compares a strategy that edits the prompt with whole prompts edited by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from against_twin import _compare
from gold import SUPPRESSED
from twin import Twin

from lvlm_guard import Guard
from lvlm_guard.testing import TinyProcessor, tiny
from lvlm_guard.testing.recompute import Recorder
from lvlm_guard.testing.sequences import TEXTS, pictures

TOLERANCE = 2e-4


def make_inputs(architecture: str, picture: Any, text: str) -> Any:
    """Return the inputs of one prompt."""
    return TinyProcessor(architecture)(images=[picture], text=[text])


def check_by_hand(architecture: str, strategy: Any, edit: Callable[[Any, str], tuple[Any, str]]) -> None:
    """Compare each step, greedy and with beams, with a whole prompt made of `edit(picture, text)` and run alone."""
    model, effects = tiny(architecture)[0], []
    expected: dict[Any, list[Any]] = {}
    images = pictures()
    plain = [make_inputs(architecture, *pair) for pair in zip(images, TEXTS, strict=True)]
    edited = [make_inputs(architecture, *edit(*pair)) for pair in zip(images, TEXTS, strict=True)]
    for beams in (1, 3):
        guard, recorder = Guard(model, TinyProcessor(architecture), [strategy]), Recorder()
        inputs = guard.inputs(images=images, text=TEXTS)
        settings: dict[str, Any] = {
            "max_new_tokens": 4,
            "do_sample": False,
            "suppress_tokens": SUPPRESSED,
            "num_beams": beams,
        }
        output = guard.generate(**inputs, **settings, logits_processor=[recorder])
        assert torch.equal(output[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])
        start = recorder.seen[0][0].shape[1]
        for ids, scores in recorder.seen:
            for line, row in enumerate(row for row in range(3) for _ in range(beams)):
                key = row, tuple(ids[line, start:].tolist())
                if key not in expected:
                    expected[key] = [Twin(model).next(prompts[row], key[1]) for prompts in (edited, plain)]
                error, effect = _compare(scores[line], *expected[key], beams=beams > 1)
                assert error <= TOLERANCE, f"{architecture} {beams} beams, row {row}: off by {error:.2e}"
                effects.append(effect)
    print(f"{architecture} {strategy.name}: effect {min(effects):.2f} to {max(effects):.2f}")
    assert max(effects) > 0.1
