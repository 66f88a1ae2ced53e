"""Kernels with one operator, bound or number changed, each in a copy of the package."""

from __future__ import annotations

import ast
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "kernels" / "lvlm_guard_kernels"
OPERATORS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Lt: ast.Gt,
    ast.Gt: ast.Lt,
    ast.LtE: ast.Gt,
    ast.GtE: ast.Lt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
CALLS = {"maximum": "minimum", "minimum": "maximum", "max": "min", "min": "max"}


@dataclass(frozen=True)
class Mutant:
    """One change of one function.

    Args:
        room: The folder of its file, such as `combine`.
        function: Its function.
        place: Number of the change among those that the function allows.
        says: What is changed, by line.
    """

    room: str
    function: str
    place: int
    says: str

    @property
    def file(self) -> str:
        """Path in the package."""
        return f"{self.room}/fused.py"

    def write(self, folder: Path) -> None:
        """Write a copy of the package with this change into a folder."""
        copy = folder / PACKAGE.name
        shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
        tree = ast.parse((PACKAGE / self.file).read_text())
        function = next(one for one in _list_kernels(tree) if one.name == self.function)
        _change(list(_list_places(function))[self.place])
        (copy / self.file).write_text(ast.unparse(tree))


def list_mutants(room: str) -> Iterator[Mutant]:
    """Yield every mutant of a folder's kernels and of the functions that they call."""
    source = (PACKAGE / room / "fused.py").read_text()
    lines = source.splitlines()
    for function in _list_kernels(ast.parse(source)):
        for number, place in enumerate(_list_places(function)):
            line: int = place.lineno
            yield Mutant(
                room, function.name, number, f"{type(place).__name__} in line {line}: {lines[line - 1].strip()}"
            )


def draw_mutants(room: str, each: int, seed: int = 0) -> list[Mutant]:
    """Return some mutants of every function of a folder."""
    mutants: dict[str, list[Mutant]] = {}
    for mutant in list_mutants(room):
        mutants.setdefault(mutant.function, []).append(mutant)
    draw = random.Random(seed)
    return [one for group in mutants.values() for one in draw.sample(group, min(each, len(group)))]


def _list_kernels(tree: ast.Module) -> list[ast.FunctionDef]:
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return [one for one in functions if any(ast.unparse(mark).startswith("triton.jit") for mark in one.decorator_list)]


def _list_places(function: ast.FunctionDef) -> Iterator[ast.BinOp | ast.Compare | ast.Call]:
    """Yield the nodes of a function that a change is known for."""
    for node in ast.walk(ast.Module(body=function.body, type_ignores=[])):
        is_operator = isinstance(node, ast.BinOp) and type(node.op) in OPERATORS
        is_comparison = isinstance(node, ast.Compare) and type(node.ops[0]) in OPERATORS
        if is_operator or is_comparison or (isinstance(node, ast.Call) and _name(node) in CALLS):
            assert isinstance(node, ast.BinOp | ast.Compare | ast.Call)
            yield node


def _name(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else ""


def _change(node: ast.BinOp | ast.Compare | ast.Call) -> None:
    if isinstance(node, ast.BinOp):
        node.op = OPERATORS[type(node.op)]()  # type: ignore[assignment]
    elif isinstance(node, ast.Compare):
        node.ops[0] = OPERATORS[type(node.ops[0])]()  # type: ignore[call-overload]
    else:
        assert isinstance(node.func, ast.Attribute)
        node.func.attr = CALLS[node.func.attr]
