"""`docs/reference/api.md` has every public name, and names only types that its readers can import."""

from __future__ import annotations

import ast
import builtins
import inspect
import re
import typing
from collections import abc

import pytest
from torch import Tensor, nn

import lvlm_guard
from lvlm_guard import fields, fitting, testing

COMMON = {*vars(builtins), *typing.__all__, *abc.__all__, "Tensor", "nn", "Path", "Literal"}
"""Names of Python, its library and torch."""

OURS = {*lvlm_guard.__all__, *testing.__all__, *fields.__all__, *fitting.__all__}


@pytest.fixture(scope="module")
def page(docs):
    return (docs / "reference" / "api.md").read_text(encoding="utf-8")


def members(value):
    """Public functions behind the methods and properties of a class, also inherited ones; deprecated ones left out."""
    for name, member in (
        inspect.getmembers_static(value) if hasattr(inspect, "getmembers_static") else vars(value).items()
    ):
        function = getattr(member, "__func__", getattr(member, "fget", member))
        if not name.startswith("_") and inspect.isfunction(function) and not is_deprecated(member):
            yield name, function


def is_deprecated(function):
    return (inspect.getdoc(function) or "").startswith("Deprecated")


def annotations():
    """(where, annotation) of everything public."""
    for module in (lvlm_guard, testing):
        for name in module.__all__:
            value = getattr(module, name)
            functions = dict(members(value)) if inspect.isclass(value) else {}
            if inspect.isclass(value) or inspect.isfunction(value):
                functions[""] = value
            for member, function in functions.items():
                for annotation in read_annotations(function):
                    yield f"{name}.{member}".rstrip("."), annotation


def read_annotations(function):
    try:
        signature = inspect.signature(function)
    except ValueError:  # of an exception
        return []
    found = [parameter.annotation for parameter in signature.parameters.values()]
    return [one for one in (*found, signature.return_annotation) if isinstance(one, str)]


def names_in(annotation: str) -> set[str]:
    tree = ast.parse(annotation.strip("'\""), mode="eval")
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def test_every_public_name_has_a_section(page):
    headings = re.findall(r"^### (\w+)$", page, re.MULTILINE)
    assert sorted(headings) == sorted([*lvlm_guard.__all__, *testing.__all__])


def test_every_member_of_the_main_classes_has_a_section(page):
    for value in (lvlm_guard.Guard, lvlm_guard.Stack, lvlm_guard.Report, lvlm_guard.Generation):
        own = [name for name, _ in members(value) if name in vars(value)]
        assert len(own) >= 3
        assert [name for name in own if f"\n#### {value.__name__}.{name}\n" not in page] == []


def test_every_section_says_something(page):
    sections = re.split(r"^#{3,4} (.+)$", page, flags=re.MULTILINE)[1:]
    bodies = {
        name: re.sub(r"```py\n.*?```", "", text, flags=re.DOTALL)
        for name, text in zip(*[iter(sections)] * 2, strict=True)
    }
    assert [name for name, text in bodies.items() if not re.search(r"\w{4}", text.partition("\n## ")[0])] == []


def test_every_type_in_an_annotation_can_be_imported():
    found = list(annotations())
    assert len(found) > 100
    assert {"Depth", "Operation"} <= OURS
    private = {
        (where, name) for where, text in found for name in names_in(text) - COMMON - OURS if not name.startswith("_")
    }
    assert private == set()
    assert all(inspect.isclass(value) for value in (Tensor, nn.Module))


def test_the_page_shows_no_address_of_this_run(page):
    assert not re.search(r" at 0x|/home/|site-packages", page)
