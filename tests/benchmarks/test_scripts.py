"""The benchmark scripts run from a checkout, write whole files, and say what they cannot do."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "benchmarks"
EVERY_ROW = {"gpu_name", "torch", "transformers", "triton", "status"}
WAYS = {
    "plain", "empty stack", "noise branch, batched", "noise branch, sequential", "image-free branch, batched",
}  # fmt: skip
INSIDE = {
    "readouts (dola)", "readouts (deco)", "online readouts (memvr)", "attention edits (vaf)", "hidden edits (vsv)",
}  # fmt: skip
OTHERS = {"plain, again", "plain, twice the rows", "classifier-free guidance (transformers)", *INSIDE}


def run(script, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(SCRIPTS / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def run_part(part, out, *more):
    done = run("gpu.py", "--part", part, "--tiny", "--device", "cpu", "--out", out, *more)
    assert done.returncode == 0, done.stderr
    assert names(out) == [f"{part}.csv", f"{part}.json", f"{part}.md"]
    rows = json.loads((out / f"{part}.json").read_text())["rows"]
    table = list(csv.DictReader((out / f"{part}.csv").read_text().splitlines()))
    assert [row["status"] for row in table] == [row["status"] for row in rows]
    assert all(set(row) >= EVERY_ROW for row in rows)
    assert all(row["gpu_name"] == "none (cpu)" for row in rows)
    return rows


def ascending(row, name):
    low, middle, high = (row[f"{name}_p{percentile}"] for percentile in (20, 50, 80))
    return 0 < low <= middle <= high


@pytest.fixture(scope="module")
def overhead(tmp_path_factory):
    out = tmp_path_factory.mktemp("overhead")
    done = run("overhead.py", "--tiny", "--out", out)
    assert done.returncode == 0, done.stderr
    assert names(out) == ["overhead.json", "overhead.md"]
    assert (out / "overhead.md").read_text().strip() == done.stdout.strip()
    return json.loads((out / "overhead.json").read_text()), done.stdout


def test_overhead_compares_every_way_to_generate_at_both_batch_sizes(overhead):
    rows, about = overhead[0]["rows"], overhead[0]["about"]
    assert {(row["batch"], row["variant"]) for row in rows} == {
        (batch, way) for batch in (1, 4) for way in WAYS | OTHERS
    }
    assert all(ascending(row, name) for row in rows for name in ("decode_ms", "prefill_ms", "decode_ratio"))
    assert all(row["rounds"] == 2 and row["status"] == "ok" for row in rows)
    assert {"cpu", "cores", "torch", "transformers", "dtype", "prompt_tokens", "load_average"} <= set(about)
    ran = {row["variant"]: row["executor"] for row in rows}
    assert ran["noise branch, batched"] == ran["image-free branch, batched"] == "batched"
    assert ran["noise branch, sequential"] == "sequential"


def test_overhead_prints_its_goals_beside_the_result(overhead):
    page, printed = overhead
    goals = {(row["batch"], row["variant"]): row["goal"] for row in page["rows"] if row["goal"]}
    assert goals == {
        (1, "noise branch, batched"): 1.25,
        (1, "image-free branch, batched"): 1.25,
        (1, "readouts (dola)"): 1.05,
        (1, "readouts (deco)"): 1.05,
        (1, "attention edits (vaf)"): 1.15,
        (1, "hidden edits (vsv)"): 1.02,
        (1, "empty stack"): 1.005,
        (4, "empty stack"): 1.005,
    }
    for told in ("noise branch, batched, batch 1: decode", "goal 1.25x", "goal 1.005x", "plain against itself"):
        assert told in printed


def test_guard_part_has_times_ratios_and_the_floor_of_every_variant(tmp_path):
    rows = run_part("guard", tmp_path)
    names = {"tiny LLaVA", "tiny Qwen2.5-VL"}
    assert {(row["model"], row["batch"], row["variant"]) for row in rows} == {
        (model, batch, way) for model in names for batch in (1, 8) for way in WAYS
    }
    assert all(ascending(row, name) for row in rows for name in ("decode_ms", "prefill_ms", "decode_ratio"))
    floors = {(row["model"], row["batch"], row["variant"]): row["floor_bytes"] for row in rows}
    for model in names:
        plain, batched = floors[model, 8, "plain"], floors[model, 8, "noise branch, batched"]
        blind, sequential = floors[model, 8, "image-free branch, batched"], floors[model, 8, "noise branch, sequential"]
        assert plain < blind < batched < sequential == 2 * plain
    assert all(row["peak_memory_gib"] is None for row in rows)


def test_kernels_part_times_each_provider_at_each_size(tmp_path):
    rows = run_part("kernels", tmp_path)
    providers = {row["provider"] for row in rows}
    assert {"published chain (VCD)", "reference"} < providers
    assert any("torch.compile" in name for name in providers)
    assert len(rows) == 4 * len(providers)
    assert all(ascending(row, "time_us") for row in rows)
    exact = [row["largest_error"] for row in rows if row["provider"] == "reference"]
    rounded = [row["largest_error"] for row in rows if row["provider"] == "published chain (VCD)"]
    assert max(exact) < 1e-5 < max(rounded)


def test_correctness_part_compares_every_executor_and_mode(tmp_path):
    rows = run_part("correctness", tmp_path)
    assert {(row["executor"], row["mode"], row["strategy"]) for row in rows} == {
        (executor, mode, strategy)
        for executor in ("batched", "sequential")
        for mode in ("greedy", "beams")
        for strategy in ("vcd", "m3id")
    }
    for row in rows:
        assert row["ran"] == row["executor"]
        assert row["largest_difference"] <= 1e-3
        assert row["smallest_effect"] > 0.1
        assert row["status"] == "ok"


def test_what_the_time_did_not_suffice_for_is_recorded_as_skipped(tmp_path):
    rows = run_part("correctness", tmp_path, "--seconds", 0)
    assert {row["status"] for row in rows} == {"skipped: time"}


def test_a_wrong_part_names_the_known_ones(tmp_path):
    done = run("gpu.py", "--part", "guards", "--out", tmp_path)
    assert done.returncode == 2
    assert all(name in done.stderr for name in ("guards", "guard", "kernels", "correctness"))


def test_a_missing_gpu_is_an_error_with_the_way_out(tmp_path):
    done = run("gpu.py", "--part", "guard", "--out", tmp_path / "new")
    assert done.returncode == 2
    assert "sees no GPU" in done.stderr
    assert "--tiny --device cpu" in done.stderr
    assert not (tmp_path / "new").exists()


def test_overhead_refuses_counts_that_cannot_be_timed(tmp_path):
    done = run("overhead.py", "--new-tokens", 1, "--out", tmp_path)
    assert done.returncode == 2
    assert "at least" in done.stderr
