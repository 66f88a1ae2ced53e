"""Runs that several processes share: the files of one process, whatever the order and whoever dies."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import pytest
import quick_run
from shared_runs import DeadlyToy, LateFirst, NoSampledSecond, ToySource
from typer.testing import CliRunner

from lvlm_guard import InputError
from lvlm_guard.bench.running import shared_run
from lvlm_guard.bench.running.gathering import gather
from lvlm_guard.bench.running.manifest import SuiteChoice
from lvlm_guard.bulk.processes import ProcessPool
from lvlm_guard.cli import app


def share(folder, plan, workers=3, source=ToySource()):  # noqa: B008 - frozen
    return shared_run.run_shared(plan, source, folder, workers, gather(plan), progress=False)


@pytest.fixture
def late_first(monkeypatch):
    """Workers in this process."""

    class Pool(LateFirst):
        def __class_getitem__(cls, _):
            return cls

    monkeypatch.setattr(shared_run, "ProcessPool", Pool)
    return Pool


def read_costs(folder):
    return {path.parent.name + path.name: path.read_text().count("\n") for path in folder.rglob("costs/**/*.jsonl")}


@pytest.mark.parametrize("workers", [2, 7])
def test_the_files_are_those_of_one_process(tmp_path, late_first, workers):
    quick_run.run(tmp_path / "one")
    share(tmp_path / "shared", quick_run.plan(), workers)
    assert quick_run.kept(tmp_path / "shared") == quick_run.kept(tmp_path / "one")
    assert read_costs(tmp_path / "shared") == read_costs(tmp_path / "one")


def test_work_of_the_dead_is_taken_up(tmp_path, late_first):
    late_first.deaths = ("batch 0 of toy", "batch 2 of toy", "batch 2 of toy", "batch 1 of small")
    quick_run.run(tmp_path / "one")
    _, replaced = share(tmp_path / "shared", quick_run.plan())
    assert replaced == 4
    assert quick_run.kept(tmp_path / "shared") == quick_run.kept(tmp_path / "one")


def test_a_batch_that_kills_every_worker_ends_the_run_which_goes_on_later(tmp_path, late_first):
    late_first.deaths = ("batch 2 of toy",) * 3
    with pytest.raises(InputError, match="3 workers died at batch 2 of toy; of the last, it was ended"):
        share(tmp_path / "shared", quick_run.plan())
    late_first.deaths = ()
    share(tmp_path / "shared", quick_run.plan())
    quick_run.run(tmp_path / "one")
    assert quick_run.kept(tmp_path / "shared") == quick_run.kept(tmp_path / "one")


def test_one_process_and_several_take_up_each_others_runs(tmp_path, late_first):
    quick_run.run(tmp_path / "one")
    late_first.deaths = ("batch 3 of toy",) * 3
    with pytest.raises(InputError):
        share(tmp_path / "shared", quick_run.plan())
    quick_run.run(tmp_path / "shared")
    assert quick_run.kept(tmp_path / "shared") == quick_run.kept(tmp_path / "one")
    before = read_costs(tmp_path / "one")
    share(tmp_path / "one", quick_run.plan())
    assert read_costs(tmp_path / "one") == before


def test_nothing_is_kept_behind_a_refusal(tmp_path, late_first):
    quick_run.run(tmp_path / "one", model=NoSampledSecond())
    share(tmp_path / "shared", quick_run.plan(), 4, ToySource(kind=NoSampledSecond))
    files = quick_run.kept(tmp_path / "one")
    assert "refusals/sampling/toy.json" in files
    counts = [files[f"answers/{system}/toy.jsonl"].count(b"\n") for system in ("sampling", "greedy")]
    assert 0 < counts[0] < counts[1] - 4
    assert quick_run.kept(tmp_path / "shared") == files


def test_processes_that_are_killed(tmp_path):
    mark = tmp_path / "deadly"
    mark.write_text(str(os.getpid()))
    plan = quick_run.plan()
    suites = {**plan.suites, "toy": SuiteChoice(DeadlyToy(5, mark), "ours", {"pictures": 5})}
    deadly = replace(plan, suites=suites)
    _, replaced = share(tmp_path / "shared", deadly, 2)
    assert (replaced, mark.exists()) == (1, False)
    quick_run.run(tmp_path / "one")
    assert quick_run.kept(tmp_path / "shared") == quick_run.kept(tmp_path / "one")
    assert ProcessPool is shared_run.ProcessPool


def test_what_cannot_travel_is_refused_before_anything_is_written(tmp_path):
    @dataclass(frozen=True)
    class Nameless(quick_run.Toy):
        pass

    plan = quick_run.plan()
    here = replace(plan, suites={"toy": SuiteChoice(Nameless(5), "ours", {"pictures": 5})})
    with pytest.raises(InputError, match="cannot be shared among processes"):
        share(tmp_path / "shared", here)
    assert not (tmp_path / "shared").exists()


@pytest.mark.slow
def test_the_command(tmp_path):
    for folder, workers in (("one", "1"), ("two", "2")):
        arguments = [
            "bench",
            "run",
            "scenes:count=4,captions=2",
            "--stack",
            "vcd",
            "--batch",
            "3",
            "--workers",
            workers,
        ]
        result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / folder)])
        assert result.exit_code == 0, result.output
    one, two = (quick_run.kept(tmp_path / name) for name in ("one", "two"))
    answers = {name for name in one if name.startswith(("answers", "refusals", "items", "manifest"))}
    assert answers == {name for name in two if name.startswith(("answers", "refusals", "items", "manifest"))}
    assert all(one[name] == two[name] for name in answers)
