"""Hooks with keyword arguments are registered in one place, which is safe where another thread takes one off meanwhile."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
SAFE = CHECKOUT / "lvlm_guard" / "forward" / "installations.py"
METHODS = ("register_forward_hook", "register_forward_pre_hook")
SOURCES = [
    path for room in ("lvlm_guard", "kernels", "plugins", "benchmarks") for path in (CHECKOUT / room).rglob("*.py")
]


def find_registrations(source: str) -> list[int]:
    """Lines that register a hook which may get keyword arguments."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and getattr(node.func, "attr", getattr(node.func, "id", "")) in METHODS
        and any(keyword.arg in ("with_kwargs", None) for keyword in node.keywords)
    ]


def test_hooks_with_keyword_arguments_are_registered_in_one_place():
    found = {path: find_registrations(path.read_text(encoding="utf-8")) for path in SOURCES}
    assert found.pop(SAFE), "nothing is looked for any more"
    places = [f"{path.relative_to(CHECKOUT)}:{line}" for path, lines in found.items() for line in lines]
    assert not places, f"use installations.hook_with_kwargs, or installations.register within a call: {places}"


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("part.register_forward_hook(note)", []),
        ("part.register_forward_hook(note, with_kwargs=True)", [1]),
        ("\npart.register_forward_pre_hook(note, with_kwargs=flag)", [2]),
        ("part.register_forward_hook(note, **settings)", [1]),
        ("[p.register_forward_pre_hook(note, prepend=True, with_kwargs=True).remove for p in parts]", [1]),
    ],
)
def test_the_search_sees_every_way_of_asking_for_them(source, lines):
    assert find_registrations(source) == lines
