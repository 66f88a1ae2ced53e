"""Code in the pages compiles and, where it says so, runs; links lead somewhere; generated pages are up to date."""

from __future__ import annotations

import importlib.util
import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
PAGES = [CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").rglob("*.md"))]
TUTORIAL = CHECKOUT / "docs" / "tutorial" / "write-a-strategy.md"
SVG = "{http://www.w3.org/2000/svg}"


def name_of(page) -> str:
    return page.relative_to(CHECKOUT).as_posix()


def compiled(page, block):
    return compile(block.code, f"{name_of(page)}:{block.line}", "exec", dont_inherit=True)


@pytest.fixture
def example_on_path(monkeypatch, example):
    monkeypatch.syspath_prepend(example)
    yield
    sys.modules.pop("lvlm_guard_example", None)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_in_the_page_compiles(page, blocks):
    for block in blocks(page):
        if block.language == "python":
            compiled(page, block)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
@pytest.mark.usefixtures("example_on_path")
def test_runnable_python_in_the_page_runs(page, blocks, names, monkeypatch, tmp_path):
    """Blocks marked `python run` share their names from top to bottom of a page."""
    monkeypatch.chdir(tmp_path)
    for block in blocks(page):
        if block.runs:
            exec(compiled(page, block), names)


def test_some_python_runs(blocks):
    running = [name_of(page) for page in PAGES for block in blocks(page) if block.runs]
    assert {"docs/reference/hooks.md", "docs/tutorial/write-a-strategy.md"} <= set(running)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        if "://" in link or link.startswith("mailto:"):
            continue
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            broken.append(link)
    assert broken == []


def anchors(page: Path) -> set[str]:
    """Anchors that a renderer makes of the headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_in_the_index(docs):
    index = (docs / "index.md").read_text(encoding="utf-8")
    pages = {page.relative_to(docs).as_posix() for page in docs.rglob("*.md")} - {"index.md"}
    loose = {page for page in pages if not page.startswith("decisions/")}
    assert [page for page in sorted(loose) if f"({page})" not in index] == []


def test_generated_pages_are_up_to_date(docs):
    spec = importlib.util.spec_from_file_location("generate", docs / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    for name, page in generate.PAGES.items():
        assert (docs / name).read_text(encoding="utf-8") == page(), f"{name} is out of date: python docs/generate.py"


def test_the_tutorial_shows_the_files_of_the_example(blocks, example):
    """Blocks with a title are whole files; other blocks of its languages are excerpts of one of them, or run."""
    files = {path.relative_to(example).as_posix(): path.read_text(encoding="utf-8") for path in sources(example)}
    shown = {block.title: block.code for block in blocks(TUTORIAL) if block.title}
    assert shown == {name: files[name] for name in files if name != "README.md"}
    excerpts = [block for block in blocks(TUTORIAL) if block.language in ("python", "toml") and not block.title]
    plain = "\n".join(undented(text) for text in files.values())
    assert [block.code for block in excerpts if not block.runs and undented(block.code) not in plain] == []


def sources(example) -> list[Path]:
    inside = [path for path in example.rglob("*") if path.suffix in (".py", ".toml", ".md")]
    return sorted(path for path in inside if not {"dist", "build", ".venv"} & set(path.parts))


def undented(text: str) -> str:
    return "\n".join(line.strip() for line in text.splitlines())


def test_the_drawing_is_readable_on_its_own(docs):
    drawing = ET.parse(docs / "explanation" / "architecture.svg").getroot()
    assert drawing.tag == f"{SVG}svg"
    assert drawing.find(f"{SVG}title") is not None
    assert drawing.find(f"{SVG}desc") is not None
    words = " ".join("".join(text.itertext()) for text in drawing.iter(f"{SVG}text"))
    assert [name for name in ("generate", "branch", "main", "terms", "kernels", "report") if name not in words] == []
    assert "architecture.svg" in (docs / "explanation" / "architecture.md").read_text(encoding="utf-8")


def test_the_table_of_rooms_is_complete(docs):
    """Every file of the core has a row, and every file in a row exists."""
    page = (docs / "explanation" / "architecture.md").read_text(encoding="utf-8")
    rows = "\n".join(line for line in page.splitlines() if line.startswith("| `"))
    told = set(re.findall(r"`((?:lvlm_guard|kernels|plugins)/[\w/.]*)`", rows))
    assert [path for path in sorted(told) if not (CHECKOUT / path).exists()] == []
    core = {path.relative_to(CHECKOUT).as_posix() for path in (CHECKOUT / "lvlm_guard").glob("*.py")}
    assert sorted(core - told - {"lvlm_guard/__init__.py"}) == []
