"""On held-out items every control has to be beaten: what answers by habit, or always the same, is not recommended."""

from __future__ import annotations

from types import SimpleNamespace

import planted
import pytest
from planted import Planted, Simulated
from pretended_search import PretendedCache, split_planted

from lvlm_guard.bench.catalogue import SuiteCatalogue, SuiteOffer
from lvlm_guard.bench.items import LEVELS
from lvlm_guard.errors import InputError
from lvlm_guard.host.stack import Stack
from lvlm_guard.tuning import judging
from lvlm_guard.tuning.costs import CostModel
from lvlm_guard.tuning.judging import Judge, name_finalists, parse_budget
from lvlm_guard.tuning.objectives import find_objectives


def plain(seen):
    return seen.plain


def caption(seen):
    return seen.caption


CONTROLS = {
    "greedy": (plain, caption),
    "yes_bias": (lambda seen: seen.plain + 2, caption),
    "contrarian": (lambda seen: -seen.habit, caption),
    "swap": (lambda seen: seen.plain - seen.evidence + seen.other, lambda seen: "thing0 thing1 thing2"),
}
STACKS = {
    "tuned": (lambda seen: -seen.habit, caption),
    "tuned-2": (lambda seen: -1.0, caption),
    "tuned-3": (lambda seen: seen.plain - 1.8 * planted.HABIT * seen.habit, caption),
    "tuned-4": (plain, lambda seen: " ".join(seen.caption.split()[:2])),
    "tuned-5": (lambda seen: seen.plain + 1.5 * seen.evidence, lambda seen: seen.sure),
}
"""Against habit, always no, pushed against habit, short captions, and a sound one."""

COST = {"batch": 0, "rows": 10, "tokens": 20, "seconds": 1.0, "prefill": 1.0, "decode": 1.0, "rows_per_forward": 1}


@pytest.fixture(scope="module")
def finalists(tmp_path_factory):
    roles = dict.fromkeys(CONTROLS, "control") | dict.fromkeys(STACKS, "stack")
    record = Simulated({**CONTROLS, **STACKS}, roles)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SuiteCatalogue, "find", lambda _, name: SuiteOffer(Planted, "tests"))
        patch.setattr(Judge, "_run", lambda *_, **__: record)
        patch.setattr(Judge, "_write", lambda *_: None)
        patch.setattr(Simulated, "costs", lambda *_: [COST])
        return judge(tmp_path_factory.mktemp("judged")).judge(name_finalists([Stack.of("vdd")] * len(STACKS)))


def judge(folder, budget=2.5):
    answers = PretendedCache().answer(Stack(), split_planted(), "all").answers
    objectives = find_objectives(Planted().measures("ours"), LEVELS, answers)
    subject = SimpleNamespace(data=None)
    return Judge(folder, subject, split_planted(), objectives, CostModel(None, 5), budget)


def test_only_what_sees_more_is_recommended(finalists):
    assert [finalist.name for finalist in finalists] == list(STACKS)
    assert [finalist.name for finalist in finalists if finalist.helps] == ["tuned-5"], [
        (finalist.name, verdict.level, verdict.kind) for finalist in finalists for verdict in finalist.verdicts
    ]


def test_a_stack_that_moves_habit_is_called_that(finalists):
    kinds = {finalist.name: {verdict.kind for verdict in finalist.verdicts} for finalist in finalists}
    assert "moves habit" in kinds["tuned-3"]
    assert "hurts" in kinds["tuned"]
    assert "hurts" in kinds["tuned-2"]


def test_a_stack_over_budget_is_not_recommended_however_good_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(Simulated, "costs", lambda _, system, suite: [{**COST, "prefill": 1.0 + (system != "greedy")}])
    record = Simulated({**CONTROLS, **STACKS}, dict.fromkeys((*CONTROLS, *STACKS), "stack"))
    helping = judging.Verdict("planted", "tuned-5", "helps", "figures")
    by_budget = {
        budget: judge(tmp_path, budget)._judge_stack(record, "tuned-5", Stack.of("vdd"), [helping])
        for budget in (1.2, 2.5)
    }
    assert by_budget[2.5].helps
    assert not by_budget[1.2].helps
    assert "more than 1.2" in by_budget[1.2].fault


def test_a_stack_that_names_less_is_not_recommended(tmp_path):
    record = Simulated({**CONTROLS, **STACKS}, dict.fromkeys((*CONTROLS, *STACKS), "stack"))
    helping = judging.Verdict("planted", "tuned-4", "helps", "figures")
    finalist = judge(tmp_path)._judge_stack(record, "tuned-4", Stack.of("vdd"), [helping])
    assert not finalist.helps
    assert "name less" in finalist.fault


@pytest.mark.parametrize(("text", "budget"), [("1.2x", 1.2), ("2", 2.0), (" 1x ", 1.0)])
def test_a_budget_is_a_factor(text, budget):
    assert parse_budget(text) == budget


@pytest.mark.parametrize(
    ("text", "words"), [("0.5x", "below 1x"), ("fast", "such as 1.2x"), ("nan", "such as"), ("infx", "such as")]
)
def test_a_budget_that_cannot_be_is_refused(text, words):
    with pytest.raises(InputError, match=words):
        parse_budget(text)
