"""What has to be read to follow one guarded decode step: `python benchmarks/reading.py`.

A tiny llava generates with one strategy, and Python reports every function of `lvlm_guard`, `kernels` and `plugins` that runs
during one decode forward. Functions, files and lines are counted; so are names that say nothing and `Any` in `forward/`.
Functions are found by the path of their file, so the script measures any commit: run it with that commit's Python.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch
from bound_names import SHELVES, BoundName, count_by_room, read_checkout

import lvlm_guard
from lvlm_guard import Guard
from lvlm_guard.forward.installations import hook_with_kwargs
from lvlm_guard.testing import TinyProcessor, tiny

CHECKOUT = Path(lvlm_guard.__file__).resolve().parents[1]
STACKS = ("vcd", "pai", "vsv")
NUMBER = 2
"""Which decode forward is recorded. The first one also prepares the executor, so it is no usual step."""


@dataclass(frozen=True)
class Function:
    """A function that ran: its file relative to the checkout, its name, its first and last line."""

    path: str
    name: str
    first: int
    last: int

    @property
    def lines(self) -> set[tuple[str, int]]:
        """Its lines, decorators and docstring included, each with its file."""
        return {(self.path, line) for line in range(self.first, self.last + 1)}


class Sources:
    """The sources of a checkout, by which a code object is traced back to the function that holds it."""

    def __init__(self, checkout: Path) -> None:
        self._roots = tuple(checkout / shelf for shelf in SHELVES)
        self._checkout = checkout
        self._functions: dict[Path, list[Function]] = {}

    def function_of(self, code: CodeType) -> Function | None:
        """Return the innermost function around a code object, or None where its file is not one of the checkout's."""
        path = Path(code.co_filename)
        if not any(path.is_relative_to(root) for root in self._roots):
            return None
        line = code.co_firstlineno
        around = [function for function in self._read(path) if function.first <= line <= function.last]
        relative = path.relative_to(self._checkout).as_posix()
        return max(around, key=lambda function: function.first, default=Function(relative, code.co_name, line, line))

    def _read(self, path: Path) -> list[Function]:
        if path not in self._functions:
            relative = path.relative_to(self._checkout).as_posix()
            nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            self._functions[path] = [
                Function(relative, node.name, min([node.lineno, *(item.lineno for item in node.decorator_list)]), end)
                for node in nodes
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (end := node.end_lineno)
            ]
        return self._functions[path]

    def count_code(self, lines: set[tuple[str, int]]) -> int:
        """Count those of some lines that hold code: neither blank, nor a comment, nor a docstring."""
        return sum(
            len({line for name, line in lines if name == path} & code_lines(self._checkout / path))
            for path in {path for path, _ in lines}
        )


def code_lines(path: Path) -> set[int]:
    """Return the lines of a file that hold code."""
    text = path.read_text(encoding="utf-8")
    written = {
        number for number, line in enumerate(text.splitlines(), 1) if line.strip() and not line.strip().startswith("#")
    }
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            written -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return written


class DecodeForward:
    """Records the code that runs during decode forward number `number` of a module, counted from 1."""

    def __init__(self, number: int) -> None:
        self.codes: set[CodeType] = set()
        self._number, self._decodes = number, 0

    @contextmanager
    def watching(self, module: torch.nn.Module) -> Iterator[None]:
        """Watch a module inside the block. Both hooks stand outside of the forward that a guard wraps."""
        handles = [
            hook_with_kwargs(module, self._enter, before=True),
            module.register_forward_hook(self._leave),
        ]
        try:
            yield
        finally:
            sys.setprofile(None)
            for handle in handles:
                handle.remove()

    def _enter(self, _: Any, __: Any, inputs: dict[str, Any]) -> None:
        self._decodes += inputs["input_ids"].shape[1] == 1
        if self._decodes == self._number:
            sys.setprofile(self._record)

    def _leave(self, *_: Any) -> None:
        sys.setprofile(None)

    def _record(self, frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            self.codes.add(frame.f_code)


@dataclass(frozen=True)
class Step:
    """One recorded decode step."""

    stack: str
    executor: str
    functions: tuple[Function, ...]

    @property
    def lines(self) -> set[tuple[str, int]]:
        """Every line of its functions, each once."""
        return set().union(*(function.lines for function in self.functions))


def record_step(stack: str, sources: Sources, number: int = NUMBER) -> Step:
    """Generate with a stack, batched where it has branches, and return what ran in decode forward `number`."""
    model, inputs = tiny("llava")
    guard = Guard(model, TinyProcessor("llava"), stack=stack)
    lengths = {"max_new_tokens": number + 1, "min_new_tokens": number + 1, "do_sample": False}
    guard.generate(**inputs, **lengths)
    forward = DecodeForward(number)
    with forward.watching(model):
        guard.generate(**inputs, **lengths)
    functions = {function for code in forward.codes if (function := sources.function_of(code))}
    ordered = sorted(functions, key=lambda function: (function.path, function.first))
    return Step(stack, guard.report.executor, tuple(ordered))


def count_any(folder: Path) -> tuple[int, int]:
    """Count the uses of `Any` and the lines of a folder's modules; imports of `Any` are no uses."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.py"))]
    nodes = (node for text in texts for node in ast.walk(ast.parse(text)))
    uses = sum(isinstance(node, ast.Name) and node.id == "Any" for node in nodes)
    return uses, sum(len(text.splitlines()) for text in texts)


def steps_table(steps: Sequence[Step], sources: Sources) -> list[str]:
    """One row for each stack: how much runs."""
    rows = [
        (
            step.stack,
            step.executor,
            len(step.functions),
            len({function.path for function in step.functions}),
            len(step.lines),
            sources.count_code(step.lines),
        )
        for step in steps
    ]
    return table(("stack", "executor", "functions", "files", "lines", "of code"), rows)


def functions_table(step: Step) -> list[str]:
    """One row for each function of a step."""
    rows = [(function.path, function.name, len(function.lines)) for function in step.functions]
    return table(("file", "function", "lines"), rows)


def names_table(names: Sequence[BoundName]) -> list[str]:
    """One row for each room, and one for all: the share of names that are a pronoun or a participle."""
    banned = count_by_room([name for name in names if name.is_banned])
    rows = [(room, count, banned[room]) for room, count in sorted(count_by_room(names).items())]
    rows.append(("all", len(names), banned.total()))
    return table(
        ("room", "names bound", "pronouns and participles", "share"),
        [(room, count, hits, f"{hits / count:.1%}") for room, count, hits in rows],
    )


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Return the lines of a Markdown table."""
    body = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(map(str, row))} |" for row in body]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What has to be read to follow one guarded decode step.")
    parser.add_argument("--functions", action="store_true", help="list the functions of every stack as well")
    options = parser.parse_args(arguments)
    sources = Sources(CHECKOUT)
    steps = [record_step(stack, sources) for stack in STACKS]
    uses, lines = count_any(CHECKOUT / "lvlm_guard" / "forward")
    pages = [steps_table(steps, sources), names_table(read_checkout(CHECKOUT))]
    pages += [[f"`{step.stack}`", "", *functions_table(step)] for step in steps if options.functions]
    pages.append([f"`Any` in lvlm_guard/forward: {uses} in {lines} lines, {uses / lines * 1000:.0f} per 1,000 lines."])
    print("\n\n".join("\n".join(page) for page in pages))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
