"""A name that no file can have ends in an error of ours, wherever a path is taken."""

import ast
from pathlib import Path

import pytest

from lvlm_guard import loading
from lvlm_guard.bench.running import store
from lvlm_guard.errors import GuardError
from lvlm_guard.fitting.demonstrations import read_demonstrations
from lvlm_guard.host.stack import Stack
from lvlm_guard.request.picture_sources import open_path
from lvlm_guard.strategy.artefacts import Artefact
from lvlm_guard.testbed import files as testbed_files

RAISING = {"exists", "is_file", "is_dir"}
DOORS = {
    "run": store.check_folder,
    "report": store.read,
    "model": lambda path: loading.load(f"./{path}"),
    "picture": open_path,
    "stack": lambda path: Stack.read(path.with_name(f"{path.name}.toml")),
    "demonstrations": read_demonstrations,
    "artefact": lambda path: Artefact.load(path, "vti", None),
    "figures": lambda path: testbed_files.check_destination(path, "figure.png"),
    "training": lambda path: testbed_files.check_folder(path, "--out"),
}


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"], ids=["too long", "NUL"])
@pytest.mark.parametrize("door", DOORS)
def test_a_name_that_no_file_can_have_is_refused(door, name):
    with pytest.raises(GuardError):
        DOORS[door](Path(name))


def test_paths_are_looked_at_through_one_door(checkout):
    found = [
        f"{path.relative_to(checkout)}:{node.lineno}"
        for path in sorted((checkout / "lvlm_guard").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in RAISING
        and not node.args
    ]  # fmt: skip
    assert found == [], (
        "A Path raises for names that no file can have: use exists, is_file, is_folder of lvlm_guard.files."
    )
