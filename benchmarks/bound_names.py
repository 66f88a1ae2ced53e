"""Names that a source tree binds, and those among them that are a pronoun, a participle or an adverb by themselves."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SHELVES = ("lvlm_guard", "kernels", "plugins")
BANNED = frozenset({
    "one", "ones", "other", "others", "another", "mine", "own", "ours", "theirs", "it", "its", "this", "that",
    "these", "those", "them", "they", "who", "whose", "what", "which", "anything", "everything", "nothing",
    "something", "whole", "rest", "asked", "began", "begun", "brought", "came", "done", "found", "gave", "given",
    "gone", "got", "held", "kept", "known", "lent", "made", "met", "said", "seen", "shown", "spoken", "taken",
    "told", "wanted", "went", "beside", "here", "now", "there",
})  # fmt: skip
BANNED_VARIABLES = frozenset({"put"})
"""Good names of functions, and bad ones of values."""


@dataclass(frozen=True)
class BoundName:
    """One place where a name is bound.

    Args:
        name: The name as the source spells it.
        path: The file, relative to the checkout, with slashes.
        line: Its line, counted from 1.
        is_function: Whether a `def` binds it.
    """

    name: str
    path: str
    line: int
    is_function: bool = False

    @property
    def room(self) -> str:
        """The folder of `lvlm_guard` that holds the file; `lvlm_guard`, `kernels` or `plugins` for all others."""
        parts = self.path.split("/")
        return "/".join(parts[:2]) if parts[0] == "lvlm_guard" and len(parts) > 2 else parts[0]

    @property
    def is_banned(self) -> bool:
        """Whether the name, without underscores around it, is on the list."""
        word = self.name.strip("_").lower()
        return word in BANNED or (word in BANNED_VARIABLES and not self.is_function)


def read_checkout(checkout: Path) -> list[BoundName]:
    """Return every name that the packages of a checkout bind, file by file."""
    paths = [path for shelf in SHELVES for path in sorted((checkout / shelf).rglob("*.py"))]
    return [bound for path in paths for bound in read_file(path, checkout)]


def read_file(path: Path, checkout: Path) -> list[BoundName]:
    """Return every name that one file binds, in the order of its lines."""
    relative = path.relative_to(checkout).as_posix()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = [BoundName(name, relative, line, is_function) for name, line, is_function in walk_bindings(tree)]
    return sorted(names, key=lambda bound: bound.line)


def walk_bindings(tree: ast.AST) -> Iterator[tuple[str, int, bool]]:
    """Yield name, line and whether a function is defined, for every binding in a tree."""
    operands = second_operands(tree)
    for node in ast.walk(tree):
        if node not in operands and (name := name_bound_by(node)):
            yield name, getattr(node, "lineno", 0), isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def second_operands(tree: ast.AST) -> set[ast.AST]:
    """Return the parameters that Python itself calls `other`, as in `__eq__(self, other)`."""
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    special = (node for node in functions if node.name.startswith("__") and node.name.endswith("__"))
    return {argument for node in special for argument in node.args.args if argument.arg == "other"}


def name_bound_by(node: ast.AST) -> str | None:
    """Return the name that a node itself binds, or None."""
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return name
        case ast.arg(arg=name) | ast.Name(id=name, ctx=ast.Store()):
            return name
        case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
            return name
        case ast.alias(asname=name) | ast.ExceptHandler(name=name) | ast.MatchAs(name=name) | ast.MatchStar(name=name):
            return name
        case ast.MatchMapping(rest=name):
            return name
        case _:
            return None


def count_by_room(names: Sequence[BoundName]) -> Counter[str]:
    """Count names by room."""
    return Counter(bound.room for bound in names)
