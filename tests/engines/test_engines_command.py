"""`lvlm-guard engines`, and what the command line says where vLLM is missing or asked for what it cannot do."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest
from typer.testing import CliRunner

from lvlm_guard.cli import app
from lvlm_guard.cli.engine_options import read_engine_options
from lvlm_guard.cli.engines import describe_run
from lvlm_guard.engines import support
from lvlm_guard.engines import vllm as engine
from lvlm_guard.engines.support import EngineRun, load_support, save_support
from lvlm_guard.errors import InputError
from lvlm_guard.host.plugins import catalogue

EFFECTS = {"vcd": 0.1, "vdd": 0.1, "icd": 0.1, "m3id": 0.05, "ritual": 0.02}


def call(*arguments):
    return CliRunner().invoke(app, [*arguments], catch_exceptions=False, env={"COLUMNS": "200"})


def test_the_table_lists_every_bundled_strategy_in_both_engines():
    names = {offer.name for offer in catalogue() if offer.distribution == "lvlm-guard"}
    assert names
    for runs in load_support().engines.values():
        assert set(runs) == names


def test_every_run_was_equal_or_refused_with_a_reason():
    runs = load_support().engines["vllm"]
    assert {run.status for run in runs.values()} <= {"equal", "refused", "not run"}
    assert all(run.reason for run in runs.values() if run.status != "equal")
    assert all(runs[name].status == "equal" and runs[name].effect > effect for name, effect in EFFECTS.items())
    assert all(run.delta < 1e-3 for run in runs.values())


def test_refusals_say_what_is_missing():
    runs = load_support().engines["vllm"]
    needs = {
        "memvr": "edits of hidden states by a function",
        "sid": "captures of attention",
        "avisc": "captures of attention",
    }
    assert all(
        runs[name].status == "refused" and f"{name!r} needs {need}" in runs[name].reason for name, need in needs.items()
    )
    assert runs["vti"].status == "equal"
    assert "alpha_image=0" in runs["vti"].reason
    assert "edits of the vision tower" in runs["vti"].reason


def test_a_table_is_read_as_it_was_written(tmp_path):
    table = load_support()
    save_support(table, tmp_path / "table.json")
    assert support.SupportTable.from_dict(json.loads((tmp_path / "table.json").read_text())) == table


def test_the_command_prints_the_table_and_its_json():
    printed = call("engines")
    assert printed.exit_code == 0
    assert "vcd" in printed.stdout
    assert "4 of 4 equal" in printed.stdout
    assert json.loads(call("engines", "--json").stdout) == load_support().to_dict()


def test_a_run_that_differs_says_how_many_were_equal():
    assert describe_run(EngineRun("differs", 3, 4)) == "3 of 4 equal"
    assert describe_run(EngineRun("refused", reason="why")) == "refused"


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed here")
def test_without_vllm_the_extra_is_named():
    pytest.importorskip("fastapi")
    with pytest.raises(InputError, match=r"lvlm-guard\[vllm\]"):
        _ = engine.GuardedLLM
    with pytest.raises(AttributeError, match="Guardian"):
        _ = engine.Guardian
    with pytest.raises(InputError, match=r"lvlm-guard\[vllm\]"):
        call("serve", "--model", "testbed", "--engine", "vllm")


def test_engine_options_are_a_json_object():
    assert read_engine_options(None) == {}
    assert read_engine_options('{"max_model_len": 256}') == {"max_model_len": 256}
    for text in ("[1]", "{", "max_model_len=256"):
        with pytest.raises(InputError, match="--engine-options is a JSON object"):
            read_engine_options(text)


def test_engine_options_need_the_engine():
    pytest.importorskip("fastapi")
    with pytest.raises(InputError, match="--engine vllm"):
        call("serve", "--model", "testbed", "--engine-options", "{}")


def test_a_device_is_not_chosen_for_vllm():
    pytest.importorskip("fastapi")
    with pytest.raises(InputError, match="--device"):
        call("serve", "--model", "testbed", "--engine", "vllm", "--device", "cpu")
