"""Every step equals a from-scratch recompute: architectures x branch kinds x executors x modes of generate."""

import pytest
import torch
from gold import CORE, MODES, TOLERANCE, Case

from lvlm_guard import ModeRefused

KINDS = ("noised", "longer", "blind", "masked")
APART = ("greedy", "beams", "prompt lookup")
"""Modes in which the suite decodes one by one as well; the others are slow tests."""
SUITE = ("greedy", "sampling", "beams", "prompt lookup", "assistant")
"""Modes of the suite for kinds of branches but the first."""
LONG = [("gemma3", 24)]  # longer than its sliding window of 16


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("architecture", "text"), [(name, 6) for name in CORE] + LONG)
@pytest.mark.parametrize("apart", [APART, pytest.param(tuple(MODES), marks=pytest.mark.slow)], ids=["some", "all"])
def test_every_step_equals_a_recompute_from_scratch(architecture, text, kind, apart):
    case = Case(architecture, kind, text)
    changed = False
    modes = MODES if apart is not APART or kind == "noised" else {mode: MODES[mode] for mode in SUITE}
    for mode, settings in modes.items():
        for executor in ("auto", "sequential") if mode in apart else ("auto",):
            if case.refuses(mode):
                with pytest.raises(ModeRefused, match="sliding-window"):
                    case.check(executor, **settings(case))
                continue
            error, effect, moved = case.check(executor, **settings(case))
            changed |= moved
            print(f"{architecture} {kind} {mode} {executor}: error {error:.1e}, effect {effect:.2f}")
            assert error <= TOLERANCE, f"{mode}, {executor}: differs from the recompute by {error}"
            assert effect > 0.1, f"{mode}, {executor}: no power, the branch moves logits by {effect} only"
    assert changed, "no power: the combination never preferred another token than main"


@pytest.mark.parametrize("executor", ["auto", "sequential"])
@pytest.mark.parametrize("architecture", CORE)
def test_an_ended_row_stops_as_the_formula_says(architecture, executor):
    for text in range(6, 14):  # until a prompt whose answer is not one token over and over
        case = Case(architecture, "noised", text)
        answer = greedy(case, 6)
        new = [index for index in range(1, 6) if answer[index] not in answer[:index]]
        if new:
            break
    assert new, "no power: every answer is one token over and over"
    error, effect, _ = case.check(executor, eos_token_id=answer[new[-1]], pad_token_id=0, max_new_tokens=8)
    assert error <= TOLERANCE
    assert effect > 0.1


def greedy(case: Case, tokens: int) -> list[int]:
    prefix: list[int] = []
    for _ in range(tokens):
        gold = case.oracle.logits(prefix)[0].clone()
        gold[98:105] = -torch.inf
        prefix.append(int(gold.argmax()))
    return prefix
