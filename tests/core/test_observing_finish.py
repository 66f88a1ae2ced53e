"""A strategy that states that it observes finishes beside streamers, returned sequences and scores, and revises nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

from lvlm_guard import Generation, Guard, ModeRefused, PluginRejected, Revision, hookimpl
from lvlm_guard.host.plugins import check_strategy
from lvlm_guard.testing import TinyProcessor, tiny
from lvlm_guard.testing.sequences import pictures

SETTINGS = {"max_new_tokens": 3, "do_sample": False}


@dataclass(frozen=True)
class Watching:
    name: ClassVar[str] = "watching"
    observes: ClassVar[bool] = True

    asks: bool = False
    text: str = ""

    @hookimpl
    def finish(self, gen: Generation) -> Iterable[Revision]:
        gen.results["watching"] = {"ids": gen.output_ids, "margins": gen.margins(["w9 w7"], 0) if self.asks else []}
        return [Revision(0, self.text)] if self.text else []


def make_guard(strategy: Any) -> tuple[Guard, Any]:
    model, _ = tiny("llava")
    guard = Guard(model, TinyProcessor("llava"), [strategy])
    return guard, guard.inputs(images=pictures(2), text=["w9 <image> w21 w33", "<image> w30"])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_beams": 3, "num_return_sequences": 2},
        {"do_sample": True, "num_return_sequences": 2},
        {"return_dict_in_generate": True, "output_scores": True, "output_logits": True},
    ],
)
def test_output_is_plain_generates_and_seen_whole(settings):
    guard, inputs = make_guard(Watching())
    torch.manual_seed(0)
    guarded = guard.generate(**inputs, **{**SETTINGS, **settings})
    torch.manual_seed(0)
    plain = guard.model.generate(**inputs, **{**SETTINGS, **settings})
    ids, expected = (getattr(output, "sequences", output) for output in (guarded, plain))
    assert torch.equal(ids, expected)
    assert guard.report.results["watching"]["ids"] == ids[:, inputs["input_ids"].shape[1] :].tolist()


def test_it_asks_beside_returned_sequences():
    guard, inputs = make_guard(Watching(asks=True))
    guard.generate(**inputs, **SETTINGS, num_beams=2, num_return_sequences=2)
    assert len(guard.report.results["watching"]["margins"]) == 1
    assert guard.report.questions


def test_nothing_is_kept_for_questions_where_nobody_asks():
    guard, inputs = make_guard(Watching())
    guard.generate(**inputs, **SETTINGS)
    assert not guard.report.questions


def test_its_revision_is_rejected():
    guard, inputs = make_guard(Watching(text="w9"))
    with pytest.raises(PluginRejected, match="states that it only observes"):
        guard.generate(**inputs, **SETTINGS)


def test_a_strategy_that_states_nothing_is_refused_as_before():
    @dataclass(frozen=True)
    class Revising:
        @hookimpl
        def finish(self, gen: Generation) -> Iterable[Revision]:
            return []

    guard, inputs = make_guard(Revising())
    with pytest.raises(ModeRefused, match="num_return_sequences"):
        guard.generate(**inputs, **SETTINGS, num_beams=2, num_return_sequences=2)


def test_the_statement_is_a_bool():
    @dataclass(frozen=True)
    class Odd:
        observes: ClassVar[str] = "yes"

    with pytest.raises(PluginRejected, match="observes: must be True or False"):
        check_strategy(Odd)
