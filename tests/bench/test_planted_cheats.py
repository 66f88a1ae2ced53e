"""What sees nothing is not judged to help, level by level and over all; a sound improvement is."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from xml.etree import ElementTree as ET

import planted
import pytest
from planted import Planted, Simulated

from lvlm_guard.bench.catalogue import SuiteCatalogue, SuiteOffer
from lvlm_guard.bench.items import LEVELS
from lvlm_guard.bench.reporting import axes, level_verdicts, page, results, verdicts
from lvlm_guard.bench.reporting.answers import read_suite_answers


def half(seen):
    words = seen.caption.split()
    return " ".join(words[: len(words) // 2])


def plain(seen):
    return seen.plain


def told(seen):
    return seen.caption


def sure_and_short(seen):
    """Invents less than anybody, and names little."""
    words = seen.sure.split()
    return " ".join(words[: max(1, len(words) // 4)])


CONTROLS = {
    "greedy": (plain, told),
    "yes_bias": (lambda seen: seen.plain + 2, told),
    "contrarian": (lambda seen: -seen.habit, told),
    "pba": (plain, sure_and_short),
    "swap": (lambda seen: seen.plain - seen.evidence + seen.other, lambda seen: "thing0 thing1 thing2"),
    "swap@swapped": (lambda seen: seen.plain - planted.HABIT * seen.habit, half),
}
CHEATS = {
    "contrarian_stack": (lambda seen: -seen.habit, told),
    "against_habit": (lambda seen: seen.plain - 1.8 * planted.HABIT * seen.habit, told),
    "with_habit": (lambda seen: seen.plain + 0.5 * planted.HABIT * seen.habit, told),
    "always_no": (lambda seen: -1.0, told),
    "always_yes": (lambda seen: 1.0, told),
    "shorter": (plain, half),
    "swapped": (lambda seen: seen.plain - planted.HABIT * seen.habit + 1e-9 * seen.other, half),
    "shuffled_labels": (lambda seen: seen.plain + seen.chance, told),
}
SOUND = {"sound": (lambda seen: seen.plain + 1.5 * seen.evidence, lambda seen: seen.sure)}


@pytest.fixture(scope="module")
def scored():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SuiteCatalogue, "find", lambda _, name: SuiteOffer(Planted, "tests"))
        return score({**CONTROLS, **CHEATS, **SOUND})


@pytest.fixture(scope="module")
def judged(scored):
    return judge(*scored)


def score(systems):
    """Figures and answers by system."""
    roles = {name: "control" if name in CONTROLS else "stack" for name in systems}
    record = Simulated(systems, roles, {"swap@swapped": ["swapped"]})
    return results.score(record, resamples=400), read_suite_answers(record, "planted").by_system


def judge(scored, answers):
    """Verdicts by (stack, level); the one on the headline has no level."""
    measures = Planted().measures("ours")
    found = [
        *verdicts.verdicts(scored, "planted", measures, answers),
        *level_verdicts.level_verdicts(scored, "planted", measures, answers),
    ]
    return {(one.system, one.level): one for one in found}


PLACES = ("", *LEVELS, level_verdicts.CAPTIONS)


def test_there_is_a_verdict_for_every_stack_over_all_and_at_every_level(judged):
    assert set(judged) == {(stack, place) for stack in (*CHEATS, *SOUND) for place in PLACES}


@pytest.mark.parametrize("cheat", CHEATS)
def test_a_cheat_is_not_judged_to_help(judged, cheat):
    assert {place: judged[cheat, place].kind for place in PLACES if judged[cheat, place].kind == "helps"} == {}


@pytest.mark.parametrize("place", PLACES)
def test_a_sound_improvement_is_judged_to_help(judged, place):
    found = judged["sound", place]
    assert found.kind == "helps", found.why
    if place != level_verdicts.CAPTIONS:
        assert all(name in found.why for name in ("contrarian", "bias", "swap"))


@pytest.mark.parametrize("place", ["", *LEVELS])
def test_the_kind_says_what_a_cheat_did(judged, place):
    kinds = {cheat: judged[cheat, place] for cheat in CHEATS}
    assert kinds["contrarian_stack"].kind == kinds["always_no"].kind == kinds["always_yes"].kind == "hurts"
    assert kinds["against_habit"].kind == "moves habit"
    assert "habit_breaking" in kinds["against_habit"].why
    assert kinds["shorter"].kind == "changed nothing" or kinds["shorter"].kind == "indistinguishable from greedy"
    assert kinds["swapped"].kind not in ("helps", "unproven")


def test_a_gain_that_stays_with_the_evidence_of_another_picture_is_matched_by_its_own_control(judged):
    assert judged["swapped", ""].kind == "only shifts bias"
    assert "swap@swapped, a control" in judged["swapped", ""].why
    assert "swap@swapped" not in judged["sound", ""].why


def test_answers_pushed_towards_habit_are_called_what_they_are(judged):
    assert judged["with_habit", ""].kind in ("moves habit", "hurts")


def test_answers_say_nothing_about_captions_that_did_not_change(judged):
    for cheat in ("always_no", "always_yes", "shuffled_labels"):
        assert judged[cheat, level_verdicts.CAPTIONS].kind == "indistinguishable from greedy"


def test_shorter_captions_say_less(judged):
    found = judged["shorter", level_verdicts.CAPTIONS]
    assert found.kind in ("says less", "indistinguishable from greedy", "hurts"), found
    assert judged["swapped", level_verdicts.CAPTIONS].kind != "helps"


def test_a_control_that_names_less_is_no_rival_for_captions(scored, judged):
    inventions, recall = (scored[0].of("planted", name) for name in ("chair_i", "recall"))
    assert inventions["pba"].found.value <= inventions["sound"].found.value
    assert recall["pba"].found.value < recall["sound"].found.value - 0.2
    assert "pba" not in judged["sound", level_verdicts.CAPTIONS].why
    assert "contrarian" in judged["sound", level_verdicts.CAPTIONS].why


def test_captions_whose_inventions_come_last_and_are_cut_off_say_less(monkeypatch):
    monkeypatch.setattr(SuiteCatalogue, "find", lambda _, name: SuiteOffer(Planted, "tests"))

    def late(seen):
        words = seen.caption.split()
        return " ".join(sorted(words, key=lambda word: word not in seen.item.truth))

    def cut(seen):
        words = late(seen).split()
        return " ".join(words[: round(len(words) * 0.75)])

    found = judge(*score({**{name: (margin, late) for name, (margin, _) in CONTROLS.items()}, "cut": (plain, cut)}))
    verdict = found["cut", level_verdicts.CAPTIONS]
    assert verdict.kind == "says less", verdict
    assert "cut to the same recall" in verdict.why


def test_a_constant_push_is_matched_by_the_fitted_bias(monkeypatch):
    monkeypatch.setattr(SuiteCatalogue, "find", lambda _, name: SuiteOffer(Planted, "tests"))
    monkeypatch.setattr(planted, "LEAN", 1.5)
    found = judge(*score({**CONTROLS, "push": (lambda seen: seen.plain - 1.5, told)}))
    for place in ("", *LEVELS):
        verdict = found["push", place]
        assert verdict.kind == "only shifts bias", verdict
        assert "bias, a control" in verdict.why


@pytest.mark.parametrize("cheat", ["contrarian_stack", "against_habit"])
def test_where_all_truths_break_habit_the_contrarian_does_as_well(scored, cheat):
    found, answers = scored
    outcome = next(one for one in found.outcomes if one.system == cheat)
    case = verdicts.build_case(found, outcome, "habit_breaking", Planted().measures("ours"), answers, 1)
    verdict = verdicts.judge(case)
    assert verdict.kind == "only shifts bias"
    assert "contrarian, a control" in verdict.why
    fewer = {name: rival for name, rival in case.rivals.items() if name not in ("contrarian", "swap@swapped")}
    assert verdicts.judge(dataclasses.replace(case, rivals=fewer)).kind == "helps", "no power"


def test_the_page_shows_verdicts_by_level_and_captions_on_one_plane(scored):
    found, answers = scored
    source = page.Source(answers, Planted().measures("ours"), lambda name: Planted().picture(None, name))
    section = page.build_section(found, "planted", source)
    assert section.by_level is not None
    assert section.by_level.levels == PLACES[1:]
    assert {name for name, _ in section.by_level.rows} == {*CHEATS, *SOUND}
    written = set(answers) - {"bias"}
    assert {row.system for row in section.plane_table.rows} == written
    assert section.plane.left_out == ("swap",)
    assert {mark.name for mark in section.plane.marks} == written - {"swap"}
    marks = {mark.name: mark for mark in section.plane.marks}
    assert marks["sound"].y < marks["greedy"].y, "fewer inventions are further up"
    assert marks["shorter"].x < marks["greedy"].x, "less recall is further left"
    for curve in section.plane.curves:
        ends = [[float(number) for number in point.split(",")] for point in curve.path.split()]
        assert len(ends) >= 2
        assert all(axes.LEFT <= x <= axes.RIGHT and axes.TOP <= y <= axes.BOTTOM for x, y in ends)
    places = {row.system: row.cells[-1].label for row in section.plane_table.rows}
    assert places["sound"] == "above the frontier"
    assert places["shorter"] == "on the frontier" or places["shorter"] == "below the frontier"
    text = page.render(found, {"planted": source})
    for words in ("Captions: inventions against recall", "Verdicts by level", "mention shorter", "moves habit"):
        assert words in text
    chart = ET.fromstring(re.search(r'<svg(?:(?!</svg>).)*class="cut.*?</svg>', text, re.DOTALL).group())
    assert {line.get("class") for line in chart.iter("polyline")} == {"cut shorter", "cut fewer", "cut random"}
    assert {one.get("data-system") for one in chart.iter("g")} == written - {"swap"}


def test_the_reason_of_a_level_is_about_that_level(judged):
    for stack in SOUND:
        for place in LEVELS:
            others = [level for level in LEVELS if level != place]
            assert f"({place})" in judged[stack, place].why, "no power"
            assert not any(f"({level})" in judged[stack, place].why for level in others)


def test_p_values_are_corrected_over_stacks_and_levels_together(judged):
    counts = Counter(place for _, place in judged)
    assert set(counts.values()) == {len(CHEATS) + len(SOUND)}
    plain_p, levels_p = (judged["shuffled_labels", place].why for place in ("", "object"))
    assert "p = " in plain_p or "p < " in plain_p
    assert "p = " in levels_p or "p < " in levels_p
