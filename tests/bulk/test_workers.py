"""Many workers answer a file as one would: each unit once, in order, whoever dies on the way."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from bulk_stand_in import StandIn, read_files, write_units

from lvlm_guard import InputError
from lvlm_guard.bulk.answerers import choose_device
from lvlm_guard.bulk.answering import answer_units
from lvlm_guard.bulk.dispatching import MOST_DEATHS
from lvlm_guard.bulk.ledger import AnswerLedger
from lvlm_guard.bulk.pools import OwnProcess, UnitAnswers, WorkerReady
from lvlm_guard.bulk.processes import ProcessPool
from lvlm_guard.bulk.units import LineReader

SUPPORT = Path(__file__).parents[1] / "support"
WAIT_SECONDS = 120


def run_job(source, units, folder, workers=2):
    """Answer units by processes, or here where there is one worker."""
    pool = OwnProcess(source.build(0, 1)) if workers == 1 else ProcessPool(source, workers)
    with AnswerLedger(folder, {"format": 1}) as ledger, closing(pool):
        return answer_units(pool, LineReader(units), ledger)


def test_ten_thousand_units_with_two_kills_equal_an_uninterrupted_run(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # a killed process loses nothing that it wrote
    units = write_units(tmp_path / "input.jsonl", 10_000, corrupt=(17, 9_000))
    whole = run_job(StandIn(), units, tmp_path / "whole", workers=1)
    parts = run_job(StandIn(kills={"u99": 1, "u5000": 1}, counts=tmp_path), units, tmp_path / "parts")
    assert (whole.answered, whole.replaced) == (9_998, 0)
    assert (parts.answered, parts.replaced) == (9_998, 2)
    assert [entry.line for entry in parts.rejected] == [17, 9_000]
    assert read_files(tmp_path / "whole") == read_files(tmp_path / "parts")


def test_a_job_whose_own_process_is_killed_twice_equals_an_uninterrupted_run(tmp_path):
    units = write_units(tmp_path / "input.jsonl", 300, corrupt=(5,))
    run_job(StandIn(), units, tmp_path / "whole", workers=1)
    command = [sys.executable, str(SUPPORT / "bulk_parent.py"), str(units), str(tmp_path / "parts")]
    answers = tmp_path / "parts" / "answers.jsonl"
    for least in (20, 150):
        process = subprocess.Popen(command)
        wait_until(lambda least=least: answers.exists() and answers.read_bytes().count(b"\n") >= least)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert answers.read_bytes().count(b"\n") < 299, "it was not interrupted"
    subprocess.run(command, check=True)
    assert read_files(tmp_path / "whole") == read_files(tmp_path / "parts")


def wait_until(condition):
    until = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_workers_end_with_the_process_that_gives_out_units(tmp_path):
    units = write_units(tmp_path / "input.jsonl", 10_000)
    answers = tmp_path / "out" / "answers.jsonl"
    process = subprocess.Popen([sys.executable, str(SUPPORT / "bulk_parent.py"), str(units), str(tmp_path / "out")])
    wait_until(lambda: answers.exists() and answers.read_bytes().count(b"\n") >= 5)
    children = [int(word) for word in list_children(process.pid)]
    assert len(children) >= 2
    process.kill()
    process.wait()
    wait_until(lambda: not any(is_running(child) for child in children))


def list_children(process):
    return Path(f"/proc/{process}/task/{process}/children").read_text(encoding="utf-8").split()


def is_running(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text(encoding="utf-8")


def test_a_unit_that_kills_every_worker_is_left_out_and_the_rest_goes_on(tmp_path):
    units = write_units(tmp_path / "input.jsonl", 20)
    source = StandIn(kills={"u3": 99}, counts=tmp_path, fails=("u8",))
    outcome = run_job(source, units, tmp_path / "out")
    assert (outcome.answered, outcome.replaced) == (18, MOST_DEATHS)
    assert [(entry.line, entry.reason) for entry in outcome.rejected] == [
        (3, "3 workers died at it; of the last, it was ended by SIGKILL"),
        (8, "it cannot be answered"),
    ]
    assert (tmp_path / "u3").stat().st_size == MOST_DEATHS


@pytest.mark.parametrize(
    ("source", "words"),
    [(StandIn(broken=True), "no such model"), (StandIn(dies_first=True), "SIGKILL.*fewer --workers")],
)
def test_workers_that_cannot_begin_end_the_job(tmp_path, source, words):
    units = write_units(tmp_path / "input.jsonl", 3)
    with pytest.raises(InputError, match=words):
        run_job(source, units, tmp_path / "out")


class Backwards:
    """A pool whose workers always finish in the opposite order, and say what they did before they die."""

    size = 3

    def __init__(self):
        self.tasks = {}
        self.events = [(worker, WorkerReady()) for worker in range(self.size)]

    def submit(self, worker, unit):
        self.tasks[worker] = unit

    def wait(self):
        events, self.events = self.events, []
        if not events:
            worker = max(self.tasks, key=lambda number: self.tasks[number].line)
            events = [(worker, UnitAnswers(tuple(self.tasks.pop(worker).questions)))]
        return events


def test_answers_are_in_the_order_of_the_input_whoever_finishes_first(tmp_path):
    units = write_units(tmp_path / "input.jsonl", 9)
    with AnswerLedger(tmp_path / "out", {"format": 1}) as ledger:
        answer_units(Backwards(), LineReader(units), ledger)
        again = {"id": "more", "line": 10, "answers": []}
        ledger.add(again)
    lines = [json.loads(line)["line"] for line in read_files(tmp_path / "out")[0].splitlines()]
    assert lines == [*range(1, 11)]


def test_answers_of_an_unsorted_folder_are_sorted_by_the_next_run(tmp_path):
    units = write_units(tmp_path / "input.jsonl", 4)
    run_job(StandIn(), units, tmp_path / "out", workers=1)
    answers = tmp_path / "out" / "answers.jsonl"
    whole = answers.read_bytes()
    answers.write_bytes(b"".join(reversed(whole.splitlines(keepends=True))))
    outcome = run_job(StandIn(), units, tmp_path / "out", workers=1)
    assert (outcome.answered, outcome.before) == (0, 4)
    assert answers.read_bytes() == whole


def test_workers_take_turns_with_the_gpus(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert [choose_device(None, worker, 3) for worker in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert choose_device("cpu", 1, 3) == "cpu"
    assert choose_device(None, 0, 1) is None
