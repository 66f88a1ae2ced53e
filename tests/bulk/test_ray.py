"""Actors of Ray answer a file as processes do: each unit once, in order, whoever dies on the way."""

import os
from contextlib import closing
from pathlib import Path

import pytest
from bulk_stand_in import StandIn, read_files, write_units
from time_limits import run_within

from lvlm_guard import InputError
from lvlm_guard.bulk.answering import answer_units
from lvlm_guard.bulk.dispatching import MOST_DEATHS
from lvlm_guard.bulk.ledger import AnswerLedger
from lvlm_guard.bulk.pools import OwnProcess
from lvlm_guard.bulk.ray_actors import RayPool
from lvlm_guard.bulk.units import LineReader

LIMIT = 900
"""Seconds of a job: two minutes on a quiet machine, of which a cluster takes most to begin and to end."""
pytestmark = [pytest.mark.ray, pytest.mark.timeout(2 * LIMIT)]
ray = pytest.importorskip("ray", reason="Ray is not installed: make test-ray")
SUPPORT = Path(__file__).parents[1] / "support"


@pytest.fixture(autouse=True)
def importable_stand_in(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(SUPPORT))
    yield
    ray.shutdown()  # where a job was left behind, its cluster is too


def run_job(source, units, folder, pool=None, limit=LIMIT):
    def run():
        with AnswerLedger(folder, {"format": 1}) as ledger, closing(pool or RayPool(source, 2)) as open_pool:
            return answer_units(open_pool, LineReader(units), ledger)

    return run_within(limit, "a job of Ray's actors", run)


def test_many_units_with_two_kills_equal_an_uninterrupted_run(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # a killed process loses nothing that it wrote
    units = write_units(tmp_path / "input.jsonl", 2_000, corrupt=(17, 1_900))
    run_job(StandIn(), units, tmp_path / "whole", OwnProcess(StandIn()))
    outcome = run_job(StandIn(kills={"u99": 1, "u1000": 1}, counts=tmp_path), units, tmp_path / "parts")
    assert (outcome.answered, outcome.replaced) == (1_998, 2)
    assert [entry.line for entry in outcome.rejected] == [17, 1_900]
    assert read_files(tmp_path / "whole") == read_files(tmp_path / "parts")


def test_a_unit_that_kills_every_actor_is_left_out_and_the_rest_goes_on(tmp_path):
    units = write_units(tmp_path / "input.jsonl", 20)
    outcome = run_job(StandIn(kills={"u3": 99}, counts=tmp_path, fails=("u8",)), units, tmp_path / "out")
    assert (outcome.answered, outcome.replaced) == (18, MOST_DEATHS)
    assert [entry.line for entry in outcome.rejected] == [3, 8]
    assert "3 workers died at it" in outcome.rejected[0].reason
    assert (tmp_path / "u3").stat().st_size == MOST_DEATHS


def test_actors_that_cannot_begin_end_the_job(tmp_path):
    units = write_units(tmp_path / "input.jsonl", 3)
    with pytest.raises(InputError, match="no such model"):
        run_job(StandIn(broken=True), units, tmp_path / "out")


def test_actors_that_never_answer_go_beyond_the_limit_and_it_says_where_that_is(tmp_path):
    units = write_units(tmp_path / "input.jsonl", 3)
    with pytest.raises(AssertionError, match=r"(?s)not done within.*in wait"):
        run_job(StandIn(seconds=10 * LIMIT), units, tmp_path / "out", limit=LIMIT / 15)
