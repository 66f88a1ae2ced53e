"""Fenced blocks of the pages, and the names that runnable blocks may use."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from lvlm_guard.testing import tiny
from lvlm_guard.testing.contract import Words

CHECKOUT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^( *)```(\S+)?([^\n]*)\n(.*?)^\1```[ \t]*$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, the words after it, its text and its first line."""

    language: str
    words: str
    code: str
    line: int

    @property
    def runs(self) -> bool:
        return self.language == "python" and "run" in self.words.split()

    @property
    def title(self) -> str | None:
        match = re.search(r'title="([^"]+)"', self.words)
        return match and match.group(1)


@pytest.fixture(scope="session")
def docs():
    return CHECKOUT / "docs"


@pytest.fixture(scope="session")
def checkout():
    return CHECKOUT


@pytest.fixture(scope="session")
def example(checkout):
    return checkout / "tests" / "third_party" / "lvlm-guard-example"


@pytest.fixture(scope="session")
def blocks():
    """A function from a page to its fenced blocks."""

    def read(page: Path) -> list[Block]:
        text = page.read_text(encoding="utf-8")
        return [
            Block(match[2] or "", match[3], textwrap.dedent(match[4]), text[: match.start()].count("\n") + 1)
            for match in FENCE.finditer(text)
        ]

    return read


@pytest.fixture
def names():
    """The names of a runnable block: a tiny model, inputs for it, a picture, and a tokenizer."""
    model, inputs = tiny("llava")
    return {"model": model, "inputs": inputs, "processor": Words(), "image": Image.new("RGB", (30, 30), "teal")}
