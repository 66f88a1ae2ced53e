"""The search: resumable, within the budget, not led astray by habit, and not paying twice."""

from __future__ import annotations

import dataclasses
import json
import sys

import pytest
from pretended_search import SETTINGS, PretendedCache, build_searcher

from lvlm_guard.bench.reporting.level_verdicts import CAPTIONS
from lvlm_guard.bench.scoring.intervals import Interval
from lvlm_guard.errors import InputError
from lvlm_guard.tuning.objectives import Gain
from lvlm_guard.tuning.records import OVER_BUDGET, TRIALS, WEAK, TrialRecord, open_book
from lvlm_guard.tuning.sampling import load_optuna
from lvlm_guard.tuning.searching import find_front, rank

COUNT = 16


def search(folder, trials=COUNT, *, cache=None, **settings):
    cache = cache or PretendedCache()
    searcher = build_searcher(cache, **settings)
    baseline = searcher.measure_plain()
    with open_book(folder, {**SETTINGS, **settings}) as book:
        return searcher.search(book, baseline, trials)


def plain(records):
    """Records that can be compared: an interval that is not known is one like another."""
    return [json.dumps(dataclasses.asdict(record)) for record in records]


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return search(tmp_path_factory.mktemp("search") / "run")


def test_the_sound_strategy_wins_and_cheats_do_not(records):
    best = rank(find_front(records), 1)[0]
    names = json.dumps(best.entries)
    assert "vdd" in names
    assert best.gain > 0.03
    alone = {record.entries[0]["name"]: record for record in records[:4]}
    assert alone["dola"].state == alone["vcd"].state == WEAK
    assert alone["sla"].gain == 0.0


def test_a_trial_that_was_given_up_answered_the_first_items_alone(tmp_path):
    cache = PretendedCache()
    search(tmp_path / "run", 4, cache=cache)
    labels = {names: [label for stack, label in cache.calls if stack == names] for names, _ in cache.calls}
    assert labels[()] == ["first", "others"]
    assert labels["dola",] == ["first"]
    assert labels["vdd",] == ["first", "others"]


def test_a_search_that_was_stopped_goes_on_as_if_it_had_not_been(records, tmp_path):
    stops = 0
    for stop in (3, 7, 14, None):
        cache = PretendedCache(stop_after=stop)
        try:
            resumed = search(tmp_path / "run", cache=cache)
        except KeyboardInterrupt:
            stops += 1
    assert stops == 3
    assert plain(resumed) == plain(records)
    assert len({json.dumps(record.entries) for record in records}) > 9


def test_more_trials_go_on_where_fewer_ended(records, tmp_path):
    assert plain(search(tmp_path / "run", 7)) == plain(records[:7])
    assert plain(search(tmp_path / "run")) == plain(records)
    assert plain(search(tmp_path / "run", 7)) == plain(records[:7])


def test_another_seed_searches_elsewhere(records, tmp_path):
    elsewhere = plain(search(tmp_path / "run", 10, seed=1))
    assert elsewhere[:4] == plain(records[:4])
    assert elsewhere[4:] != plain(records[4:10])


def test_a_stack_over_budget_is_never_chosen(tmp_path):
    records = search(tmp_path / "run", budget=1.2)
    branched = [
        record for record in records if "vdd" in json.dumps(record.entries) or "vcd" in json.dumps(record.entries)
    ]
    assert branched
    assert {record.state for record in branched} == {OVER_BUDGET}
    assert all(record.cost["answer"] <= 1.2 for record in find_front(records))
    assert not {record.number for record in branched} & {record.number for record in find_front(records)}


def test_cost_is_counted_in_forwards_prefill_and_decode_apart(records):
    vdd = next(record for record in records if record.entries[0]["name"] == "vdd")
    assert vdd.cost == {"prefill": 2.0, "decode": 2.0, "answer": 2.0, "clock": 2.0}


def test_a_torn_line_is_done_again(records, tmp_path):
    search(tmp_path / "run", 6)
    path = tmp_path / "run" / TRIALS
    path.write_bytes(path.read_bytes()[:-40])
    assert plain(search(tmp_path / "run", 8)) == plain(records[:8])


def test_an_edited_trial_is_named(tmp_path):
    search(tmp_path / "run", 4)
    path = tmp_path / "run" / TRIALS
    path.write_text(path.read_text().replace('"gain": ', '"gain": 1', 1))
    with pytest.raises(InputError, match=r"trials\.jsonl, line 1"):
        search(tmp_path / "run", 5)


def test_a_search_with_other_settings_is_refused(tmp_path):
    search(tmp_path / "run", 1)
    with pytest.raises(InputError, match=r"budget is 2.0 there|budget is None there"):
        search(tmp_path / "run", 1, budget=2.0)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match=r"notes\.txt"):
        search(tmp_path, 1)


def test_two_processes_cannot_search_in_one_folder(tmp_path):
    with (
        open_book(tmp_path / "run", SETTINGS),
        pytest.raises(InputError, match="in use"),
        open_book(tmp_path / "run", SETTINGS),
    ):
        pass


def trial(number, accuracy, inventions, cost, **changes):
    scores = {"object": accuracy, CAPTIONS: inventions}
    record = TrialRecord(number, {}, ({"name": "vdd"},), "finished", scores=scores, cost={"answer": cost}, gain=0.1)
    return dataclasses.replace(record, **changes)


def test_the_front_holds_what_nothing_beats_in_accuracy_inventions_and_cost():
    records = [
        trial(0, 0.8, 0.1, 1.5),
        trial(1, 0.8, 0.1, 1.4),
        trial(2, 0.7, 0.05, 1.4),
        trial(3, 0.7, 0.2, 1.4),
        trial(4, 0.6, 0.3, 1.0),
        trial(5, 0.9, 0.0, 1.0, state="over budget"),
        trial(6, 0.6, 0.3, 1.0),
    ]
    assert [record.number for record in find_front(records)] == [4, 1, 2]


def test_a_choice_goes_by_the_gain_less_its_standard_error():
    records = [
        trial(0, 0.8, 0.1, 1.5, error=0.09),
        trial(1, 0.7, 0.1, 1.2, error=0.01),
        trial(2, 0.6, 0.1, 1.0, gain=-0.1),
    ]
    assert [record.number for record in rank(records, 3)] == [1, 0]


def test_a_difference_about_too_few_pictures_is_never_sure():
    nothing = float("nan")
    gain = Gain({"object": Interval(-0.02, nothing, nothing), "relation": Interval(0.0, 0.0, 0.0)})
    assert gain.value + 2 * gain.error > 0
    sure = Gain({"object": Interval(-0.02, -0.03, -0.01), "relation": Interval(0.0, 0.0, 0.0)})
    assert sure.value + 2 * sure.error < 0


def test_without_optuna_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match=r"lvlm-guard\[tune\]"):
        load_optuna()
