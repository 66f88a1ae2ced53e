"""Every part of the profile names functions that exist, so that none of them is zero without a word."""

import ast
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]


def test_the_functions_of_every_part_exist(script):
    places = [place for part in script("step_profile").PARTS.values() for place in part]
    missing = [(file, name) for file, names in places for name in set(names) - functions_in(CHECKOUT / file)]
    assert missing == []


def functions_in(path):
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
