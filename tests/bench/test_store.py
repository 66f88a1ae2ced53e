"""A run's folder: whatever kills the process, nothing is lost, nothing is there twice, and nothing foreign is mixed in."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import quick_run

from lvlm_guard.bench import files
from lvlm_guard.bench.running import store
from lvlm_guard.errors import InputError

SCRIPT = Path(quick_run.__file__)
KILLS = 20


def lines(folder):
    return {path.relative_to(folder).as_posix(): path.read_text().splitlines() for path in folder.rglob("*.jsonl")}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the runs that die are forked")
@pytest.mark.slow
def test_killed_anywhere_and_taken_up_a_run_equals_one_that_was_not(tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPT, tmp_path, str(KILLS)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > KILLS, "so many writes there are to die in"
    whole = quick_run.kept(tmp_path / "whole")
    answers = {f"answers/{system}/{suite}.jsonl" for system in ("greedy", "sampling") for suite in ("toy", "small")}
    assert set(whole) == {*answers, "manifest.json", "items.jsonl"}
    for number in range(KILLS):
        assert quick_run.kept(tmp_path / str(number)) == whole, number


def test_costs_and_answers_go_together_after_a_kill(tmp_path):
    """A cost without answers is measured again, so each batch has one."""
    quick_run.run(tmp_path)
    path = tmp_path / "answers" / "greedy" / "toy.jsonl"
    first = path.read_bytes()
    path.write_bytes(first[: len(first) // 2])
    record = quick_run.run(tmp_path)
    assert path.read_bytes() == first
    numbers = [one["batch"] for one in record.costs("greedy", "toy")]
    assert numbers == list(range(len(numbers)))
    assert sum(one["rows"] for one in record.costs("greedy", "toy")) == len(record.items["toy"])


def test_a_finished_run_is_not_done_again(tmp_path):
    quick_run.run(tmp_path)
    before = lines(tmp_path)
    quick_run.run(tmp_path)
    assert lines(tmp_path) == before


def test_a_torn_last_line_is_not_read(tmp_path):
    record = quick_run.run(tmp_path)
    count = len(record.read_answers("greedy", "toy"))
    path = tmp_path / "answers" / "greedy" / "toy.jsonl"
    path.write_bytes(path.read_bytes()[:-3])
    assert len(record.read_answers("greedy", "toy")) == count - 1


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"seed": 1}, "seed: 0 there, 1 here"),
        ({"batch": 8}, "batch: 4 there, 8 here"),
        ({"pictures": 4}, "suites.toy.arguments.pictures: 5 there, 4 here"),
        ({"limit": 9}, "limit: null there, 9 here"),
        ({"stacks": {"mine": "vcd"}}, "systems.mine: nothing there"),
    ],
)
def test_a_run_with_other_settings_is_refused_with_the_difference(tmp_path, changed, words):
    quick_run.run(tmp_path)
    before = quick_run.kept(tmp_path)
    with pytest.raises(InputError, match="holds a run with other settings") as caught:
        quick_run.run(tmp_path, quick_run.plan(**changed))
    assert words in str(caught.value)
    assert quick_run.kept(tmp_path) == before


def test_other_weights_are_another_run(tmp_path):
    quick_run.run(tmp_path)
    model = quick_run.Arithmetic()
    model.weight.data.add_(0.01)
    with pytest.raises(InputError, match=r"model\.weights"):
        quick_run.run(tmp_path, model=model)


def test_the_data_may_lie_elsewhere(tmp_path):
    quick_run.run(tmp_path / "run")
    quick_run.run(tmp_path / "run", quick_run.plan(data=tmp_path))


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("my life")
    with pytest.raises(InputError, match=r"holds thesis\.tex but no manifest\.json"):
        quick_run.run(tmp_path)
    assert [one.name for one in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(InputError, match="is a file"):
        quick_run.run(tmp_path / "thesis.tex")


def test_answers_in_another_order_are_refused_not_mixed(tmp_path):
    quick_run.run(tmp_path)
    path = tmp_path / "answers" / "greedy" / "toy.jsonl"
    found = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([found[1], found[0], *found[2:]]))
    with pytest.raises(InputError, match="in their order"):
        quick_run.run(tmp_path)
    path.write_bytes(b"{half\n")
    with pytest.raises(InputError, match="is damaged"):
        quick_run.run(tmp_path)


def test_what_is_no_run_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match=r"holds no manifest\.json"):
        store.read(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"format": 0}))
    with pytest.raises(InputError, match="format 0"):
        store.read(tmp_path)


HOLD = """
import sys, time
from pathlib import Path
from lvlm_guard.bench import files
with files.hold_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_in_use_is_refused_and_a_stale_lock_taken_over(tmp_path):
    lock = tmp_path / "lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, lock], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=f"in use by process {holder.pid}"):
            quick_run.run(tmp_path)
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    assert lock.read_text() == f"{holder.pid}\n", "the dead process left its lock behind"
    quick_run.run(tmp_path)


def test_a_lock_is_free_after_an_error(tmp_path):
    with pytest.raises(RuntimeError), files.hold_lock(tmp_path / "lock"):
        raise RuntimeError
    with files.hold_lock(tmp_path / "lock"), pytest.raises(InputError, match=str(os.getpid())):
        files.hold_lock(tmp_path / "lock").__enter__()


def test_a_full_disk_is_told_and_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "manifest.json"
    path.write_text("before")

    def full(handle, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "_put", full)
    with pytest.raises(InputError, match="No space left"):
        files.write_whole(path, b"after")
    with pytest.raises(InputError, match="No space left"):
        files.append(path, b"after")
    assert [one.name for one in tmp_path.iterdir()] == ["manifest.json"]
    assert path.read_text() == "before"
