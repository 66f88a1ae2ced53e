"""Controls: what holds for several of them."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import pytest
import torch
from lvlm_guard_contrastive import VCD
from lvlm_guard_controls import OLM, PBA, Contrarian, MaskOnly, Temperature, YesBias
from pieces import Pieces

from lvlm_guard import Guard, NoEffectWarning, ProcessorNeeded, StackError, StrategyRefused
from lvlm_guard.testing import tiny
from lvlm_guard.testing.contract import Words


@pytest.mark.parametrize("strategy", [YesBias(), OLM()])
def test_answers_that_begin_alike_are_refused(strategy):
    model, inputs = tiny("llava")
    with pytest.raises(StrategyRefused, match="first tokens"):
        Guard(model, Pieces(), [strategy]).generate(**inputs, max_new_tokens=1)
    with pytest.raises(StrategyRefused, match="first tokens"):
        Guard(model, Words(), [replace(strategy, no=("yellow",), yes=("yes",))]).generate(**inputs, max_new_tokens=1)


@pytest.mark.parametrize("strategy", [YesBias(), OLM(), PBA(), Contrarian()])
def test_words_need_a_tokenizer(strategy):
    model, inputs = tiny("llava")
    with pytest.raises(ProcessorNeeded, match="processor"):
        Guard(model, None, [strategy]).generate(**inputs, max_new_tokens=1)


def test_no_hint_and_no_tokenizer_is_plain_generate():
    model, inputs = tiny("llava")
    settings = {"max_new_tokens": 3, "do_sample": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoEffectWarning)
        neutral = [PBA(hint=""), YesBias(0.0), OLM(gap=0.0), MaskOnly(0.0), Temperature(0.0), Contrarian(mass=1.0)]
        guarded = Guard(model, None, neutral).generate(**inputs, **settings)
    assert torch.equal(guarded, model.generate(**inputs, **settings))


@pytest.mark.parametrize("make", [
    lambda: MaskOnly(1.1), lambda: Temperature(-1.0), lambda: YesBias(math.inf), lambda: YesBias(yes=()),
    lambda: OLM(gap=2.0), lambda: OLM(mass=-0.1), lambda: PBA(place="before_image"), lambda: Contrarian(mass=2.0), lambda: Contrarian(pairs=()),
])  # fmt: skip
def test_settings_out_of_range_are_named(make):
    model, _ = tiny("llava")
    with pytest.raises(StackError, match=r"(beta|alpha|strength|yes|gap|mass|place|pairs).*: "):
        Guard(model, None, [make()])


def test_the_families_say_that_they_are_controls():
    assert {one.family for one in (MaskOnly, Temperature, YesBias, OLM, PBA, Contrarian)} == {"control"}
    assert VCD.family != "control"
