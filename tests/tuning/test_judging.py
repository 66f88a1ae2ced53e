"""On held-out items every control has to be beaten: what answers by habit, or always the same, is not recommended."""

from __future__ import annotations

from types import SimpleNamespace

import planted
import pytest
from planted import Planted, Simulated
from pretended_search import PretendedCache, split_planted

from lvlm_guard.bench.catalogue import SuiteCatalogue, SuiteOffer
from lvlm_guard.bench.items import LEVELS
from lvlm_guard.bench.scoring.intervals import Interval
from lvlm_guard.bench.scoring.significance import Significance
from lvlm_guard.errors import InputError
from lvlm_guard.host.stack import Stack
from lvlm_guard.tuning import judging
from lvlm_guard.tuning.beside_singles import place
from lvlm_guard.tuning.costs import CostModel, CostSketch
from lvlm_guard.tuning.judging import Judge, Single, name_finalists, parse_budget
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


COSTS = {"greedy": 1.0, "cheap": 1.0, "same": 1.0, "dear": 2.0}
SINGLES = {
    "cheap": (lambda seen: -1.0, caption),
    "same": (lambda seen: seen.plain + 1.5 * seen.evidence, lambda seen: seen.sure),
    "dear": (lambda seen: -1.0, caption),
}
"""Alone within the budget: always no, and as good as `tuned-5`; and one that is over it once it has run."""


def compare_singles(folder, monkeypatch):
    asked = []

    def run(self, label, stacks, without, *, progress):
        asked.append(set(stacks))
        return Simulated({**CONTROLS, **SINGLES}, dict.fromkeys((*CONTROLS, *SINGLES), "stack"))

    monkeypatch.setattr(Judge, "_run", run)
    monkeypatch.setattr(
        judging.store, "read", lambda _: Simulated({**CONTROLS, **STACKS}, dict.fromkeys((*CONTROLS, *STACKS), "stack"))
    )
    monkeypatch.setattr(Simulated, "costs", lambda _, system, suite: [{**COST, "prefill": COSTS.get(system, 1.0)}])
    branches = {"costly": (1.0, 1.0)}
    monkeypatch.setattr(CostModel, "sketch", lambda _, stack: CostSketch(branches.get("".join(stack.names), ())))
    stacks = {name: Stack() for name in SINGLES} | {"never": SimpleNamespace(names=("costly",))}
    return asked, judge(folder, budget=1.2).compare_singles(stacks, "tuned-5")


def test_single_strategies_are_judged_at_the_same_cost_limit(tmp_path, monkeypatch):
    asked, singles = compare_singles(tmp_path, monkeypatch)
    by_name = {single.name: single for single in singles}
    assert list(by_name) == ["cheap", "same", "dear", "never"]
    assert asked == [{"cheap", "same", "dear"}]
    assert "not run" in by_name["never"].refusal
    assert "more than 1.2" in by_name["dear"].fault
    assert (by_name["dear"].leads, by_name["never"].leads) == ({}, {})
    assert by_name["same"].leads


def test_a_stack_is_told_apart_from_those_it_beats(tmp_path, monkeypatch):
    _, singles = compare_singles(tmp_path, monkeypatch)
    standing = place(singles)
    assert (standing.beaten, standing.alike, standing.better) == (["cheap"], ["same"], [])
    assert [line.startswith("WARNING: not told from it") for line in standing.warnings] == [True]
    written = ", ".join(f"{part} {value:+.3f}" for part, value in standing.leads["same"].items())
    assert f"same ({written})" in standing.warnings[0]
    assert "better than 1, not told from 1, and worse somewhere than 0" in standing.describe()


@pytest.mark.parametrize(
    ("part", "difference", "p", "where"),
    [
        ("object", 0.1, 0.01, "beaten"),
        ("object", -0.1, 0.01, "better"),
        ("captions", 0.1, 0.01, "better"),
        ("captions", -0.1, 0.01, "beaten"),
        ("object", -0.1, 0.2, "alike"),
        ("object", 0.1, float("nan"), "alike"),
        ("object", 0.1, None, "alike"),
    ],
)
def test_a_difference_counts_once_it_is_beyond_chance_and_inventions_the_other_way_round(part, difference, p, where):
    test = Significance(Interval(difference, difference, difference), 0.0, 10, 10, "a test", p)
    good = Significance(Interval(0.2, 0.1, 0.3), 0.0, 10, 10, "a test", 0.001)
    standing = place([Single("it", None, None, {part: test})])
    assert [name for name in ("beaten", "alike", "better") if getattr(standing, name)] == [where]
    both = place([Single("it", None, None, {"relation": good, part: test})])
    assert ("it" in both.better) is (where == "better")
    assert [line for line in both.warnings if "better than it" in line] == [
        (
            "WARNING: better than it somewhere, alone at published values (and the stack minus them): "
            f"it (relation +0.200, {part} {difference:+.3f})."
        )
    ] * (where == "better")
