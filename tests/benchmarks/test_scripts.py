"""The benchmark scripts run from a checkout, write whole files, and say what they cannot do."""

import csv
import dataclasses
import importlib
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).parents[2] / "benchmarks"
EVERY_ROW = {"gpu_name", "torch", "transformers", "triton", "status"}
WAYS = {
    "plain", "empty stack", "noise branch, batched", "noise branch, sequential", "image-free branch, batched",
}  # fmt: skip
HIDDEN = {"hidden edits (vsv)", "hidden edits (vti)", "hidden edits (nullu)"}
INSIDE = {
    "readouts (dola)", "readouts (deco)", "online readouts (memvr)", "attention edits (vaf)", *HIDDEN,
}  # fmt: skip
IN_PLACE = "plain, cache in place"
MECHANISMS = WAYS | INSIDE | {"search (opera)", IN_PLACE}
OTHERS = {
    "plain, again",
    IN_PLACE,
    "plain, one multiplication a layer",
    "plain, twice the rows",
    "classifier-free guidance (transformers)",
    *INSIDE,
}


def run(script, *arguments):
    kept = {name: value for name, value in os.environ.items() if name not in ("LVLM_GUARD_KERNELS", "TRITON_INTERPRET")}
    environment = {**kept, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(SCRIPTS / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def run_part(part, out, *more, code=0):
    done = run("gpu.py", "--part", part, "--tiny", "--device", "cpu", "--out", out, *more)
    assert done.returncode == code, done.stderr
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
def correctness(tmp_path_factory):
    return run_part("correctness", tmp_path_factory.mktemp("correctness"))


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    return run_part("kernels", tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="module")
def overhead(tmp_path_factory):
    out = tmp_path_factory.mktemp("overhead")
    done = run("overhead.py", "--tiny", "--out", out)
    assert done.returncode == 0, done.stderr
    assert names(out) == ["overhead.json", "overhead.md"]
    assert (out / "overhead.md").read_text().strip() == done.stdout.strip()
    return json.loads((out / "overhead.json").read_text()), done.stdout


@pytest.mark.slow
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


@pytest.mark.slow
def test_overhead_can_keep_to_work_inside_the_layers(tmp_path):
    done = run("overhead.py", "--tiny", "--only", "readouts", "hidden", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "overhead-readouts-hidden.json").read_text())["rows"]
    assert {row["variant"] for row in rows if row["goal"] is None} == {
        "plain",
        "plain, again",
        IN_PLACE,
        "plain, one multiplication a layer",
    }
    assert {row["batch"] for row in rows} == {1}
    assert "twice the rows" not in done.stdout


@pytest.mark.slow
def test_overhead_writes_after_every_round(script, tmp_path, monkeypatch):
    overhead = script("overhead")
    judged = itertools.count()

    def stopped(batch, race):
        if next(judged) == len(overhead.BATCHES):
            raise KeyboardInterrupt
        return measured(batch, race)

    measured = overhead._judged
    monkeypatch.setattr(overhead, "_judged", stopped)
    with pytest.raises(KeyboardInterrupt):
        overhead.main(["--tiny", "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "overhead.json").read_text())["rows"]
    assert {row["rounds"] for row in rows} == {1}


@pytest.mark.slow
def test_overhead_prints_its_goals_beside_the_result(overhead):
    page, printed = overhead
    goals = {(row["batch"], row["variant"]): row["goal"] for row in page["rows"] if row["goal"]}
    assert goals == {
        (1, "noise branch, batched"): 1.25,
        (1, "image-free branch, batched"): 1.25,
        (1, "readouts (dola)"): 1.05,
        (1, "readouts (deco)"): 1.05,
        (1, "attention edits (vaf)"): 1.15,
        **{(1, edits): 1.02 for edits in HIDDEN},
        (1, "empty stack"): 1.005,
        (4, "empty stack"): 1.005,
    }
    for told in ("noise branch, batched, batch 1: decode", "goal 1.25x", "goal 1.005x", "plain against itself"):
        assert told in printed


@pytest.mark.slow
def test_guard_part_has_times_ratios_and_the_floor_of_every_mechanism(tmp_path):
    rows = run_part("guard", tmp_path)
    names = {"tiny LLaVA", "tiny Qwen2.5-VL"}
    assert {(row["model"], row["batch"], row["variant"]) for row in rows} == {
        (model, batch, way) for model in names for batch in (1, 2) for way in MECHANISMS
    }
    assert all(row["status"] == "ok" for row in rows)
    assert all(ascending(row, name) for row in rows for name in ("decode_ms", "prefill_ms", "decode_ratio"))
    floors = {(row["model"], row["batch"], row["variant"]): row["floor_bytes"] for row in rows}
    for model in names:
        plain, batched = floors[model, 2, "plain"], floors[model, 2, "noise branch, batched"]
        blind, sequential = floors[model, 2, "image-free branch, batched"], floors[model, 2, "noise branch, sequential"]
        assert plain < blind < batched < sequential == 2 * plain
        assert floors[model, 2, "search (opera)"] > 5 * (batched - plain) + plain
        assert all(floors[model, 2, way] == plain for way in INSIDE)
    assert {row["rows"] for row in rows if row["variant"] == "search (opera)"} == {25, 50}
    assert all(row["peak_memory_gib"] is None for row in rows)


@pytest.mark.slow
def test_kernels_part_times_each_provider_of_each_kernel_at_each_size(kernels):
    rows = kernels
    every = {row["kernel"] for row in rows}
    assert {"combine", "layer_divergence", "select", "select, top-k 50"} < every
    for kernel in every:
        own = [row for row in rows if row["kernel"] == kernel]
        providers = {row["provider"] for row in own}
        assert "torch" in providers
        assert "triton" not in providers, "Triton does not run on a CPU"
        assert any(name.startswith("published chain") for name in providers)
        assert len(own) == 4 * len(providers)
        assert {(row["rows"], row["vocabulary"]) for row in own} == {(1, 512), (1, 1000), (8, 512), (8, 1000)}
    assert all(row["status"] == "ok" and ascending(row, "time_us") for row in rows)
    assert any("torch.compile" in row["provider"] for row in rows)
    assert all(row["time_over_published"] == 1 for row in rows if row["provider"].startswith("published"))
    assert all(row["clocks_before"] == row["clocks_after"] == "none (cpu)" for row in rows)
    assert {row["ran"] for row in rows if row["provider"] == "torch"} == {
        f"{name}:torch" for name in ("combine", "layer_divergence", "select")
    }


@pytest.mark.slow
def test_kernels_part_holds_results_to_float64_and_shows_how_far_the_published_chains_are(kernels):
    rows = kernels
    ours = [row["largest_error"] for row in rows if row["provider"] == "torch"]
    rounded = [
        row["largest_error"]
        for row in rows
        if row["provider"].startswith("published") and not row["kernel"].startswith("select")
    ]
    assert max(ours) < 1e-5 < 1e-3 < min(rounded)


@pytest.fixture
def kernels_part(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("kernels_part")


@pytest.mark.parametrize(
    ("problem", "status"),
    [
        (torch.OutOfMemoryError("no room"), "out of memory"),
        (RuntimeError("no compiler"), "did not run: RuntimeError: no compiler"),
    ],
)
def test_a_published_chain_that_does_not_run_fails_the_part_and_lends_its_name_to_nobody(
    kernels_part, script, tmp_path, monkeypatch, problem, status
):
    def broken(*_):
        raise problem

    task = dataclasses.replace(kernels_part.TASKS[0], published={"published chain (VCD)": broken})
    monkeypatch.setattr(kernels_part, "TASKS", (task,))
    results = kernels_part.run(tmp_path, torch.device("cpu"), tiny=True, seconds=60)
    broken_rows = [row for row in results.rows if row["provider"] == "published chain (VCD)"]
    assert {row["status"] for row in broken_rows} == {status}
    assert all(row["time_over_published"] is None for row in results.rows)
    assert {row["status"] for row in results.rows if row["provider"] == "torch"} == {"ok"}
    assert script("gpu").judge([row["status"] for row in results.rows]) == 1


def test_providers_take_turns_in_an_order_that_rotates(kernels_part, monkeypatch):
    seen = []

    def lap(racer, *_):
        return lambda: seen.append(racer.provider.name)

    task = kernels_part.TASKS[0]
    inputs = task.draw(1, 64, torch.device("cpu"), torch.float32)
    providers = [kernels_part.Provider(name, task.ours, "torch") for name in "abc"]
    racers = [kernels_part.Racer(task, inputs, provider, kernels_part.Budget(60)) for provider in providers]
    monkeypatch.setattr(kernels_part, "_make_lap", lap)
    kernels_part.race(racers, "warm", torch.device("cpu"), 3)
    assert "".join(seen) == "abc" + "bca" + "cab"


@pytest.mark.parametrize(
    ("statuses", "code"),
    [(["ok"], 0), (["ok", "refused: no"], 0), (["ok", "skipped: time"], 3), (["skipped: time", "did not run: x"], 1),
     (["out of memory", "ok"], 1), (["failed: wrong result"], 1), ([], 1)],
)  # fmt: skip
def test_a_part_fails_where_something_did_not_run(script, statuses, code):
    assert script("gpu").judge(statuses) == code


def test_correctness_part_compares_every_executor_and_mode(correctness):
    guarded = [row for row in correctness if "architecture" in row]
    assert {(row["executor"], row["mode"], row["strategy"]) for row in guarded} == {
        (executor, mode, strategy)
        for executor in ("batched", "sequential")
        for mode in ("greedy", "beams")
        for strategy in ("vcd", "m3id")
    }
    for row in guarded:
        assert row["ran"] == row["executor"]
        assert row["largest_difference"] <= 1e-3
        assert row["smallest_effect"] > 0.1
        assert row["status"] == "ok"


def test_correctness_part_holds_every_kernel_to_its_reference_and_to_itself(correctness):
    checked = [row for row in correctness if "kernel" in row]
    assert {row["kernel"].partition(",")[0] for row in checked} == {
        "combine",
        "statistics",
        "layer_divergence",
        "select",
        "turn",
        "project",
        "shift",
    }
    assert {"1 x 1, float32", "3 x 1000, bfloat16", "20 repeats"} < {row["case"] for row in checked}
    assert all(row["ran"] == "torch" and row["status"] == "ok" for row in checked)
    edits = ("turn", "project", "shift")
    assert all(row["largest_difference"] <= (2**-7 if row["kernel"] in edits else 2e-5) for row in checked)


@pytest.fixture
def kernel_checks(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("kernel_checks")


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda result: result * (1 + 1e-4), "failed: difference 0.0001"),
        (lambda result: result.masked_fill(result == result.amax(), float("nan")), "failed: difference inf"),
        (lambda result: result.masked_fill(result == -float("inf"), -1e30), "failed: difference inf"),
        (lambda result: result, "ok"),
    ],
)
def test_a_kernel_that_errs_fails_its_check(kernel_checks, monkeypatch, spoil, told):
    right = kernel_checks.KERNELS[1]
    wrong = dataclasses.replace(right, run=lambda given: spoil(right.run(given)))
    monkeypatch.setattr(kernel_checks, "KERNELS", (wrong,))
    rows = list(kernel_checks.rows(torch.device("cpu"), kernel_checks.Budget(60), tiny=True))
    status = next(row["status"] for row in rows if row["case"] == "3 x 1000, bfloat16")
    assert status.startswith(told)


def test_a_kernel_that_gives_something_else_each_time_fails_its_repeats(kernel_checks, monkeypatch):
    right = kernel_checks.KERNELS[1]
    tiny = (1e-7 * number for number in itertools.count())
    wrong = dataclasses.replace(right, run=lambda given: right.run(given) * (1 + next(tiny)))
    monkeypatch.setattr(kernel_checks, "KERNELS", (wrong,))
    rows = list(kernel_checks.rows(torch.device("cpu"), kernel_checks.Budget(60), tiny=True))
    assert {row["case"] for row in rows if row["status"] != "ok"} == {"20 repeats"}


@pytest.mark.slow
def test_what_the_time_did_not_suffice_for_is_recorded_as_skipped(tmp_path):
    rows = run_part("correctness", tmp_path, "--seconds", 0, code=3)
    assert {row["status"] for row in rows} == {"skipped: time"}


@pytest.mark.slow
def test_launches_part_has_the_null_kernel_host_times_and_what_steps_launch(tmp_path):
    rows = run_part("launches", tmp_path)
    by_mode = {mode: [row for row in rows if row["mode"] == mode] for mode in ("warm", "captured", "host", "step")}
    assert [row["status"] for mode in ("warm", "captured") for row in by_mode[mode]] == ["needs a GPU"] * 2
    assert {row["what"] for row in by_mode["host"]} > {"combine", "statistics", "turn", "project", "shift"}
    assert all(ascending(row, "time_us") and row["ran"].endswith(":torch") for row in by_mode["host"])
    steps = {row["what"]: row for row in by_mode["step"]}
    assert set(steps) == {"plain", "noise branch, batched", "hidden edits (vsv)"}
    plain = steps.pop("plain")
    assert all(row["launches_per_step"] > plain["launches_per_step"] > 50 for row in steps.values())
    assert all(isinstance(row["busy_us_per_step"], float) and row["clocks"] == "none (cpu)" for row in steps.values())


@pytest.mark.slow
def test_graphs_part_has_static_caches_plain_and_guarded(tmp_path):
    rows = run_part("graphs", tmp_path)
    assert {row["variant"] for row in rows} > {
        "plain",
        "plain, compiled, twice the rows",
        "plain, static",
        "noise branch, compiled",
        "hidden edit, compiled",
    }
    assert all(row["status"] == "ok" and ascending(row, "step_ratio") for row in rows)


@pytest.mark.parametrize("part", ["guard", "kernels", "correctness", "launches", "graphs"])
def test_without_a_gpu_no_part_writes_anything(script, tmp_path, capsys, part):
    gpu = script("gpu")
    assert part in gpu.PARTS
    assert len(gpu.PARTS) == 5
    with pytest.raises(SystemExit, match="2"):
        gpu.main(["--part", part, "--out", str(tmp_path / "new")])
    assert "sees no GPU" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_hidden_edits_are_timed_beside_the_same_by_hand(tmp_path):
    done = run("hidden_edits.py", "--tiny", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "hidden_edits.json").read_text())["rows"]
    assert {(row["edit"], row["width"], row["dtype"]) for row in rows} == set(
        itertools.product(("turn", "turn, opposed", "project", "shift"), (32, 512, 4096), ("float32", "bfloat16"))
    )
    columns = ("nothing_us", "by_hand_us", "kernel_us", "value_us", "value_over_hand")
    assert all(ascending(row, name) for row in rows for name in columns)


@pytest.mark.slow
def test_launch_cost_times_every_call_with_and_without_what_is_remembered(tmp_path):
    done = run("launch_cost.py", "--tiny", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "launch_cost.json").read_text())["rows"]
    assert {row["what"]: row["launches"] for row in rows} == {
        "combine": 2,
        "combine, weights on the device": 2,
        "statistics": 2,
        "select, top-k and top-p": 3,
        "turn of one layer": 1,
    }
    assert all(ascending(row, name) for row in rows for name in ("ours_us", "triton_us", "ratio"))


@pytest.mark.slow
def test_kernels_cpu_has_paired_ratios_of_every_step(tmp_path):
    done = run("kernels_cpu.py", "--tiny", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert names(tmp_path) == ["kernels_cpu.json", "kernels_cpu.md"]
    assert (tmp_path / "kernels_cpu.md").read_text().strip() == done.stdout.strip()
    rows = json.loads((tmp_path / "kernels_cpu.json").read_text())["rows"]
    assert [row["what"] for row in rows] == ["combine"] * 4 + ["layer_divergence"] * 4 + ["readouts"] * 8
    assert all(row["status"] == "ok" and row["rounds"] >= 5 for row in rows)
    assert all(ascending(row, name) for row in rows for name in ("ours_ms", "published_ms", "ratio"))
    assert all(row["verdict"] == ("met" if row["ratio_p50"] <= 1 else "missed") for row in rows)


def test_a_wrong_part_names_the_known_ones(tmp_path):
    done = run("gpu.py", "--part", "guards", "--out", tmp_path)
    assert done.returncode == 2
    assert all(name in done.stderr for name in ("guards", "guard", "kernels", "correctness", "launches", "graphs"))


def test_a_missing_gpu_is_an_error_with_the_way_out(tmp_path):
    done = run("gpu.py", "--part", "guard", "--out", tmp_path / "new")
    assert done.returncode == 2
    assert "sees no GPU" in done.stderr
    assert "--tiny --device cpu" in done.stderr
    assert not (tmp_path / "new").exists()


def test_overhead_refuses_counts_that_cannot_be_timed(script, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        script("overhead").main(["--new-tokens", "1", "--out", str(tmp_path)])
    assert "at least" in capsys.readouterr().err


@pytest.mark.slow
def test_a_guard_with_nothing_to_do_costs_less_than_its_goals(tmp_path):
    done = run("inert.py", "--tiny", "--out", tmp_path)
    assert names(tmp_path) == ["inert.json", "inert.md"], done.stderr
    rows = {row["what"]: row for row in json.loads((tmp_path / "inert.json").read_text())["rows"]}
    timed = {what: row for what, row in rows.items() if "count" not in row}
    assert len(timed) == 3
    assert timed["attach and detach"]["microseconds_p20"] < 1000
    assert timed["a forward beside a guarded call of another thread"]["share_of_a_token"] < 0.005
    assert all(ascending(row, "microseconds") for row in timed.values())
    assert [row["verdict"] for row in rows.values() if "count" in row] == ["met"] * 3
    assert {row["verdict"] for row in rows.values()} <= {"met", "missed"}


@pytest.mark.slow
def test_questions_on_looks_are_timed_beside_whole_prompts(tmp_path):
    done = run("shared_looks.py", "--tiny", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "shared_looks.json").read_text())["rows"]
    assert len(rows) == 2 * 4 * 2
    assert {row["median_ratio"] for row in rows if (row["stack"], row["way"]) == ("plain", "whole prompts")} == {1.0}
    assert all(row["seconds_p50"] > 0 for row in rows)


@pytest.mark.slow
def test_suites_are_timed_with_looks_and_without(tmp_path):
    done = run("suites_on_looks.py", "--tiny", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "suites_on_looks.json").read_text())["rows"]
    assert len(rows) == 2 * 3 * 2
    assert {row["median_ratio"] for row in rows if row["way"] == "whole prompts"} == {1.0}
    assert all(row["seconds_p50"] > 0 for row in rows)


def test_a_loaded_model_stands_where_a_random_one_could(script):
    shape = script("folder_shape").FolderShape("testbed")
    model = shape.build(torch.device("cpu"), torch.float32)
    inputs = shape.inputs(model, 2)
    assert inputs["input_ids"].shape == (2, shape.prompt_tokens)
    assert shape.text_only(inputs["input_ids"]).shape == (2, shape.prompt_tokens - shape.image_tokens)
    assert shape.image_tokens > 0
    made = model.generate(**inputs, max_new_tokens=30, do_sample=False)
    assert made.shape[1] == shape.prompt_tokens + 30  # no end of text
