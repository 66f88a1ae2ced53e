"""A strategy from somebody else's distribution works from wheels alone, with nothing of the checkout in sight."""

from __future__ import annotations

import json
import re
import shutil
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.packaging

JOURNEY = """
import json, sys, warnings
import torch
import lvlm_guard, lvlm_guard_contrastive, lvlm_guard_example, lvlm_guard_kernels
from lvlm_guard import Guard
from lvlm_guard.host.plugins import catalogue
from lvlm_guard.testing import tiny

model, inputs = tiny("llava")
settings = dict(max_new_tokens=3, do_sample=False, return_dict_in_generate=True, output_logits=True)
plain = model.generate(**inputs, **settings).logits
with warnings.catch_warnings():
    warnings.simplefilter("error")
    guard = Guard(model, stack="stack.toml")
    guarded = guard.generate(**inputs, **settings).logits
    offers = {offer.name: offer.distribution for offer in catalogue()}
ours = (lvlm_guard, lvlm_guard_contrastive, lvlm_guard_example, lvlm_guard_kernels)
alive = guarded[0] > -1e3
print(json.dumps({
    "path": sys.path,
    "files": [module.__file__ for module in ours],
    "offers": offers,
    "broken": len(catalogue().broken),
    "stack": guard.stack.to_dict(),
    "effect": float((plain[0] - guarded[0])[alive].abs().max()),
    "had_effect": guard.report.strategies[0].had_effect,
}))
"""


@pytest.fixture
def outside(tmp_path, wheels, environment, example):
    """An environment with both wheels, and an empty folder with nothing but the stack file."""
    home, python = environment(*wheels.values())
    work = tmp_path / "empty"
    work.mkdir()
    shutil.copy(example / "stack.toml", work)
    return python, home, work


@pytest.mark.slow
def test_an_outside_strategy_runs_from_wheels_alone(outside, quietly, example, checkout):
    python, home, work = outside
    seen = json.loads(quietly(python, "-I", "-c", JOURNEY, cwd=work).splitlines()[-1])

    strays = [entry for entry in map(Path, seen["path"]) if within(entry, checkout) and not within(entry, sys.prefix)]
    assert strays == [], "the checkout is on the path, so this proves nothing"
    assert all(within(file, home) for file in seen["files"]), seen["files"]
    assert seen["offers"]["fog"] == "lvlm-guard-example"
    assert seen["offers"]["vcd"] == "lvlm-guard"
    assert seen["broken"] == 0
    assert seen["stack"] == {"stack": [{"name": "fog", "params": {"alpha": 0.7, "beta": 0.1, "density": 0.8}}]}
    assert seen["effect"] > 0.1, "no power: the strategy changed next to nothing"
    assert seen["had_effect"]

    shutil.copytree(example / "tests", work / "tests")
    shutil.copy(example / "pyproject.toml", work)
    told = quietly(python, "-I", "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", cwd=work)
    assert " passed" in told


def within(path, folder):
    return Path(path).resolve().is_relative_to(Path(folder).resolve())


def test_the_wheels_hold_our_packages_and_nothing_else(wheels):
    assert set(wheels) == {"lvlm_guard", "lvlm_guard_example"}
    for wheel in wheels.values():
        names = zipfile.ZipFile(wheel).namelist()
        assert [name for name in names if not name.startswith("lvlm_guard")] == []
    project = zipfile.ZipFile(wheels["lvlm_guard"]).namelist()
    top = {name.split("/")[0] for name in project if ".dist-info" not in name}
    assert {"lvlm_guard", "lvlm_guard_kernels", "lvlm_guard_contrastive"} <= top
    assert [name for name in sorted(top) if f"{name}/py.typed" not in project] == []


def test_the_shelves_are_not_packages(checkout):
    for shelf in ("plugins", "kernels"):
        assert not (checkout / shelf / "__init__.py").exists(), f"{shelf}/ would shadow a library of that name"
        strays = [
            entry.name for entry in (checkout / shelf).iterdir() if not entry.name.startswith(("lvlm_guard_", "."))
        ]
        assert [name for name in strays if name != "__pycache__"] == []


def test_every_package_on_a_shelf_is_in_the_wheel(checkout, wheels):
    project = zipfile.ZipFile(wheels["lvlm_guard"]).namelist()
    shelved = [
        entry.parent.name for shelf in ("plugins", "kernels") for entry in checkout.glob(f"{shelf}/*/__init__.py")
    ]
    assert [name for name in shelved if f"{name}/__init__.py" not in project] == []


def test_the_example_is_short_and_uses_public_names_only(example):
    source = (example / "lvlm_guard_example" / "__init__.py").read_text(encoding="utf-8")
    assert len([line for line in source.splitlines() if line.strip()]) < 40
    assert set(re.findall(r"\blvlm_guard\.\w+", source)) <= {"lvlm_guard.fields"}
