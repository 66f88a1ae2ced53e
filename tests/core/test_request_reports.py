"""What a report says of each row of the output, and what the answer was made with."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import transformers
from gold import SUPPRESSED, Against

import lvlm_guard
from lvlm_guard import Bias, Guard, InputEdit, Insert, NoEffectWarning, hookimpl
from lvlm_guard.testing import tiny
from lvlm_guard.testing.contract import left_padded
from lvlm_guard.testing.tiny import inputs_for

SETTINGS = {"max_new_tokens": 6, "do_sample": False}


@dataclass(frozen=True, eq=False)
class Prefers:
    """Prefer a token, and note the logits of main and of generate."""

    name: ClassVar[str] = "prefers"
    seen: ClassVar[list[Any]] = []
    token: int = 21
    weight: float = 1.0

    @hookimpl
    def terms(self, gen):
        size = gen.logits().shape[-1]
        yield Bias(torch.zeros(size).index_fill(0, torch.tensor([self.token]), self.weight))

    @hookimpl
    def observe(self, gen):
        self.seen.append((gen.step, gen.logits().argmax(-1), gen.combined.argmax(-1)))


@pytest.fixture
def batch():
    model, _ = tiny("llava")
    return model, left_padded([inputs_for("llava", model, 1, text=text, seed=text) for text in (3, 6, 11)])


def report_of(model, inputs, *stack, **settings):
    guard = Guard(model, None, list(stack))
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoEffectWarning)
        return guard.generate_with_report(**inputs, **(SETTINGS | settings))


@pytest.mark.parametrize(
    "mode",
    [{}, {"do_sample": True}, {"do_sample": True, "num_return_sequences": 2}, {"suppress_tokens": SUPPRESSED},
     {"use_cache": False}],
)  # fmt: skip
def test_a_row_tells_where_the_choice_changed_and_both_tokens(batch, mode):
    strategy = Prefers()
    strategy.seen.clear()
    output, report = report_of(*batch, Against(), strategy, **mode)
    per_request = mode.get("num_return_sequences", 1)
    assert [(entry.row, entry.request) for entry in report.requests] == [
        (row, row // per_request) for row in range(3 * per_request)
    ]
    for row, entry in enumerate(report.requests):
        expected = [
            (step, int(main[row, 0]), int(guarded[row, 0]))
            for step, main, guarded in strategy.seen
            if main[row, 0] != guarded[row, 0]
        ]
        assert list(entry.changes) == expected
    assert any(entry.changes for entry in report.requests), "no power"
    if not mode:
        answers = output[:, batch[1]["input_ids"].shape[1] :]
        assert all(
            answers[entry.row, change.position] == change.guarded
            for entry in report.requests
            for change in entry.changes
        )


def test_positions_behind_the_end_of_a_row_are_left_out(batch):
    free, report = report_of(*batch, Against())
    start = batch[1]["input_ids"].shape[1]
    end = int(free[0, start])
    assert any(change.position for change in report.requests[0].changes), "no power"
    _, report = report_of(*batch, Against(), eos_token_id=end, pad_token_id=0)
    assert all(change.position == 0 for change in report.requests[0].changes)


@pytest.mark.parametrize("which", ["first", "changed"])
def test_a_padding_token_that_was_chosen_ends_no_row(batch, which):
    free, report = report_of(*batch, Against())
    start = batch[1]["input_ids"].shape[1]
    assert any(change.position for change in report.requests[0].changes), "no power"
    position = 0 if which == "first" else report.requests[0].changes[0].position
    _, padded = report_of(*batch, Against(), pad_token_id=int(free[0, start + position]))
    assert padded.requests == report.requests
    assert padded.strategies == report.strategies


def test_reports_can_be_hashed(batch):
    _, report = report_of(*batch, Against())
    assert isinstance(hash(report), int)


def test_rejected_drafts_leave_no_trace():
    model, _ = tiny("llava")
    inputs = inputs_for("llava", model, 1, text=6, seed=6)
    longer = {"max_new_tokens": 12, "eos_token_id": SUPPRESSED[-1], "suppress_tokens": SUPPRESSED}
    _, plain = report_of(model, inputs, Against(), **longer)
    _, drafted = report_of(model, inputs, Against(), **longer, prompt_lookup_num_tokens=2, max_matching_ngram_size=1)
    assert plain.requests[0].changes
    assert drafted.requests == plain.requests


@dataclass(frozen=True)
class Hints:
    """Edit the prompt."""

    name: ClassVar[str] = "hints"

    @hookimpl
    def edit_inputs(self, gen):
        return [InputEdit(tokens=(Insert((7, 8)),))]


def test_changes_are_none_where_mains_own_choices_are_not_known(batch):
    _, beams = report_of(*batch, Against(), num_beams=2, num_return_sequences=2)
    assert [(entry.request, entry.changes) for entry in beams.requests] == [(row // 2, None) for row in range(6)]
    _, edited = report_of(*batch, Against(), Hints())
    assert [entry.changes for entry in edited.requests] == [None] * 3


def test_plain_generate_changed_nothing(batch):
    _, report = report_of(*batch)
    assert [entry.changes for entry in report.requests] == [()] * 3
    assert report.origin.transformers == transformers.__version__


@dataclass(frozen=True)
class Tuned:
    """Parameters of many kinds."""

    name: ClassVar[str] = "tuned"
    bound: float = 1.5
    place: Path = Path("a/b")
    layers: tuple[tuple[int, ...], ...] = ((1, 2), (3,))
    function: Any = json.dumps
    anything: Any = None

    @hookimpl
    def observe(self, gen):
        return None


def test_parameters_versions_and_the_model_are_plain_values(batch, monkeypatch):
    model, inputs = batch
    monkeypatch.setattr(model.config, "_name_or_path", "someone/model")
    monkeypatch.setattr(model.config, "_commit_hash", "abc", raising=False)
    _, report = report_of(model, inputs, Tuned(anything=torch.zeros(2)), Against(weight=0.5))
    assert report.strategies[0].parameters == {
        "bound": 1.5, "place": "a/b", "layers": [[1, 2], [3]], "function": "json:dumps",
        "anything": "tensor([0., 0.])",
    }  # fmt: skip
    assert report.strategies[1].parameters == {"kind": "noised", "weight": 0.5, "beta": 0.0}
    origin = report.origin
    assert (origin.lvlm_guard, origin.transformers) == (lvlm_guard.__version__, transformers.__version__)
    assert (origin.model, origin.model_commit) == ("someone/model", "abc")


def test_json_is_small_unless_all_of_it_is_wanted():
    model, _ = tiny("llava")
    inputs = inputs_for("llava", model, 1, text=6, seed=6)
    stack = (Against(), Prefers(weight=2.0), Tuned(anything="long " * 1000))
    _, report = report_of(model, inputs, *stack, max_new_tokens=64, suppress_tokens=SUPPRESSED)
    (changes,) = [entry.changes for entry in report.requests]
    assert len(changes) > 5, "no power"
    assert len(report.to_json()) < 2000
    short, whole = json.loads(report.to_json()), json.loads(report.to_json(full=True))
    assert short["changed"] == [len(changes)]
    assert short["strategies"][1]["parameters"] == {"token": 21, "weight": 2.0}
    assert whole == json.loads(json.dumps(report.to_dict()))
    assert whole["requests"] == [{"row": 0, "request": 0, "changes": [list(change) for change in changes]}]
    assert whole["strategies"][2]["parameters"]["anything"] == "long " * 1000
    assert set(whole) - set(short) == {"requests"}
