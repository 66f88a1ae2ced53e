"""The first command works from the wheel alone: weights, templates and the demo's stack are in it."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from lvlm_guard.testbed.model import FILES

pytestmark = pytest.mark.packaging

WHERE = """
import json, sys
import lvlm_guard, lvlm_guard.testbed.model
print(json.dumps([lvlm_guard.__file__, str(lvlm_guard.testbed.model.WEIGHTS), *sys.path]))
"""


def test_the_wheel_holds_what_the_demo_needs(wheels):
    names = zipfile.ZipFile(wheels["lvlm_guard"]).namelist()
    needed = [f"weights/{name}" for name in (*FILES, "MODEL_CARD.md", "card.json")]
    needed += ["demo_stack.toml", "fitted/patch_evidence.safetensors", "fitted/revise.safetensors"]
    assert [name for name in needed if f"lvlm_guard/testbed/{name}" not in names] == []


def test_the_wheel_holds_what_reports_are_made_of(wheels, checkout):
    names = zipfile.ZipFile(wheels["lvlm_guard"]).namelist()
    needed = [path.name for path in (checkout / "lvlm_guard" / "bench" / "reporting" / "templates").iterdir()]
    assert len(needed) > 3
    assert [name for name in needed if f"lvlm_guard/bench/reporting/templates/{name}" not in names] == []


@pytest.mark.slow
def test_the_demo_runs_from_the_wheel_in_an_empty_folder(tmp_path, wheels, environment, quietly, checkout):
    home, python = environment(wheels["lvlm_guard"])
    empty = tmp_path / "empty"
    empty.mkdir()

    module, weights, *path = json.loads(quietly(python, "-I", "-c", WHERE, cwd=empty).splitlines()[-1])
    assert within(module, home)
    assert within(weights, home)
    assert not any(Path(entry).resolve() == checkout for entry in path), "the checkout is on the path"

    result = json.loads(quietly(home / "bin" / "lvlm-guard", "demo", "--scenes", "3", "--json", cwd=empty))
    assert set(result["splits"]) == {"counterfactual", "iid"}
    assert all(levels["object"]["plain"]["n"] > 0 for levels in result["splits"].values())
    assert list(empty.iterdir()) == []


def within(path, folder):
    return Path(path).resolve().is_relative_to(Path(folder).resolve())
