"""Yes, where p(yes) + p(no) > mass and |p(yes) - p(no)| < gap, at the first token."""

from __future__ import annotations

import statistics

import pytest
import torch
from against_twin import OF_STRATEGIES, check
from bundled import BundledContract
from gold import SUPPRESSED
from lvlm_guard_controls import OLM
from twin import Twin

from lvlm_guard import Guard
from lvlm_guard.testing import tiny
from lvlm_guard.testing.contract import Words
from lvlm_guard.testing.tiny import inputs_for

YES, NO = [26, 44], [15, 33]  # "yes", "Yes", "no", "No" to the tests' tokenizer; " yes" and " no" begin alike


LETTERS = {"yes": tuple("abcdefghijklm"), "no": tuple("nopqrstuvwxyz")}


def chances(main, words):
    begun = sorted({5 + ord(word[0]) % 50 for word in words})
    return float(main.softmax(-1)[begun].sum()), max(begun, key=lambda token: float(main[token]))


@pytest.mark.parametrize("architecture", OF_STRATEGIES)
@pytest.mark.parametrize("doubted", ["all", "by gap", "by mass"])
def test_olm(architecture, doubted):
    model, _ = tiny(architecture)
    prompts = [Twin(model).next(inputs_for(architecture, model, 1, text=text, seed=text)) for text in (3, 6, 11)]
    yes, no = ([chances(main, LETTERS[name])[0] for main in prompts] for name in ("yes", "no"))
    gap = {"by gap": between(abs(a - b) for a, b in zip(yes, no, strict=True))}.get(doubted, 1.0)
    mass = {"by mass": between(a + b for a, b in zip(yes, no, strict=True))}.get(doubted, 0.0)
    said = {}

    def gold(model, inputs, prefix):
        main = Twin(model).next(inputs, prefix)
        for_yes, best = chances(main, LETTERS["yes"])
        for_no, _ = chances(main, LETTERS["no"])
        hesitates = for_yes + for_no > mass and abs(for_yes - for_no) < gap
        if prefix:
            return main, main
        said[inputs["input_ids"].shape[1]] = hesitates
        others = torch.arange(len(main)) != best
        return torch.where(others, main - 1e4, main) if hesitates else main, main

    check([OLM(gap=gap, mass=mass, **LETTERS)], gold, architecture, power=-1.0)
    assert sum(said.values()) in ({3} if doubted == "all" else {1, 2}), "each side of the rule is seen"


def between(values):
    """A bound that some of the three values keep and some do not."""
    ordered = sorted(values)
    return statistics.mean(ordered[1:] if ordered[2] - ordered[1] > ordered[1] - ordered[0] else ordered[:2])


@pytest.mark.parametrize("sampled", [False, True])
def test_olm_says_yes(sampled):
    model, inputs = tiny("llava")
    torch.manual_seed(0)
    guard = Guard(model, Words(), [OLM(gap=1.0, mass=0.0)])
    sequences = guard.generate(**inputs, max_new_tokens=2, do_sample=sampled, suppress_tokens=SUPPRESSED)
    assert int(sequences[0, inputs["input_ids"].shape[1]]) in YES


class TestOLM(BundledContract):
    strategy = OLM(gap=1.0, mass=0.0)  # random models put little on either answer
