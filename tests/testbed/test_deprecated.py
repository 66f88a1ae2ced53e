"""Modules and arguments under their old names: they work, and name the new ones."""

import importlib
import subprocess
import sys

import pytest

from lvlm_guard.bench.running import manifest
from lvlm_guard.testbed.training import train
from lvlm_guard.testbed.world import scenes


def test_scenes_are_found_where_they_were():
    with pytest.warns(DeprecationWarning, match=r"use lvlm_guard\.testbed\.world\.scenes\.scenes"):
        from lvlm_guard.testbed.scenes import scenes as moved  # noqa: PLC0415 - the import is what warns
    assert moved is scenes.scenes


NEW_IN_MANIFEST = ("Gathered", "describe_left_out")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("lvlm_guard.testbed.scenes", scenes),
        ("lvlm_guard.testbed.train", train),
        ("lvlm_guard.bench.manifest", manifest),
    ],
    ids=["scenes", "train", "manifest"],
)
def test_every_public_name_of_a_moved_module_is_its_new_self(old, new):
    module = importlib.import_module(old)
    names = module._NAMES if isinstance(module._NAMES, dict) else {name: name for name in module._NAMES}
    for name, new_name in names.items():
        with pytest.warns(DeprecationWarning, match=rf"{old}\.{name} .* use {new.__name__}\.{new_name}"):
            assert getattr(module, name) is getattr(new, new_name)
    defined = {name for name, value in vars(new).items() if getattr(value, "__module__", "") == new.__name__}
    public = {name for name in defined if not name.startswith("_")}
    assert public - set(names.values()) <= {"begin", "finish", "logged_minutes", *NEW_IN_MANIFEST}
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        module.nothing  # noqa: B018 - reading it is what fails


@pytest.mark.slow
def test_training_starts_under_its_old_name_and_says_the_new_one():
    command = [sys.executable, "-m", "lvlm_guard.testbed.train", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Trains the testbed's model" in done.stdout
    assert "use python -m lvlm_guard.testbed.training" in done.stderr
