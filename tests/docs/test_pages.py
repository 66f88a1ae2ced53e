"""Code in the pages compiles, and runs if it is marked; links and paths exist; generated pages are up to date."""

from __future__ import annotations

import importlib.util
import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from lvlm_guard.host.plugins import catalogue

CHECKOUT = Path(__file__).resolve().parents[2]
FRONT_PAGES = [CHECKOUT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")]
PAGES = [*FRONT_PAGES, *sorted((CHECKOUT / "docs").rglob("*.md"))]
TUTORIAL = CHECKOUT / "docs" / "tutorial" / "write-a-strategy.md"
TOUR = CHECKOUT / "docs" / "explanation" / "read-the-code.md"
REPOSITORY_PATH = re.compile(r"`((?:lvlm_guard|kernels|plugins|tests|docs|benchmarks)/[\w./-]*)`")
SVG = "{http://www.w3.org/2000/svg}"


def format_name(page) -> str:
    return page.relative_to(CHECKOUT).as_posix()


def compile_block(page, block):
    return compile(block.code, f"{format_name(page)}:{block.line}", "exec", dont_inherit=True)


@pytest.fixture
def example_on_path(monkeypatch, example):
    monkeypatch.syspath_prepend(example)
    yield
    sys.modules.pop("lvlm_guard_example", None)


@pytest.mark.parametrize("page", PAGES, ids=format_name)
def test_python_in_the_page_compiles(page, blocks):
    for block in blocks(page):
        if block.language == "python":
            compile_block(page, block)


@pytest.mark.parametrize("page", PAGES, ids=format_name)
@pytest.mark.usefixtures("example_on_path")
def test_runnable_python_in_the_page_runs(page, blocks, names, monkeypatch, tmp_path):
    """Blocks marked `python run` share their names from top to bottom of a page."""
    monkeypatch.chdir(tmp_path)
    for block in blocks(page):
        if block.runs:
            exec(compile_block(page, block), names)


def test_some_python_runs(blocks):
    running = [format_name(page) for page in PAGES for block in blocks(page) if block.runs]
    assert {"docs/reference/hooks.md", "docs/tutorial/write-a-strategy.md"} <= set(running)


@pytest.mark.parametrize("page", PAGES, ids=format_name)
def test_links_have_a_target(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        if "://" in link or link.startswith("mailto:"):
            continue
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in list_anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=format_name)
def test_files_in_the_page_exist(page):
    """A path in backticks that starts with a folder of the repository names a file or folder there."""
    paths = set(REPOSITORY_PATH.findall(page.read_text(encoding="utf-8")))
    assert [path for path in sorted(paths) if not (CHECKOUT / path).exists()] == []


def read_tour() -> list[tuple[str, str]]:
    """(file, name in it) for each name that a stop of the tour tells the reader to look for."""
    stops = re.findall(r"^- `([\w./-]+)`: (.+)$", TOUR.read_text(encoding="utf-8"), re.MULTILINE)
    return [(path, name) for path, names in stops for name in re.findall(r"`(\w+)`", names)]


def defines(path: str, name: str) -> bool:
    file = CHECKOUT / path
    pattern = rf"^ *(?:def|class) {name}\b|^{name}\b"
    return file.exists() and re.search(pattern, file.read_text(encoding="utf-8"), re.MULTILINE) is not None


def test_the_tour_has_stops():
    assert len({path for path, _ in read_tour()}) > 20


@pytest.mark.parametrize(("path", "name"), read_tour())
def test_names_in_the_tour_are_defined(path, name):
    assert defines(path, name), f"docs/explanation/read-the-code.md: {path} defines no {name}"


def list_anchors(page: Path) -> set[str]:
    """Anchors that a renderer derives from the headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_in_the_index(docs):
    index = (docs / "index.md").read_text(encoding="utf-8")
    pages = {page.relative_to(docs).as_posix() for page in docs.rglob("*.md")} - {"index.md"}
    listed = {page for page in pages if not page.startswith("decisions/")}
    assert [page for page in sorted(listed) if f"({page})" not in index] == []


def test_generated_pages_are_up_to_date(docs):
    spec = importlib.util.spec_from_file_location("generate", docs / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    for name, page in generate.PAGES.items():
        assert (docs / name).read_text(encoding="utf-8") == page(), f"{name} is out of date: python docs/generate.py"


def test_the_tutorial_shows_the_files_of_the_example(blocks, example):
    """Blocks with a title are whole files; other blocks of its languages are excerpts of one of them, or run."""
    files = {path.relative_to(example).as_posix(): path.read_text(encoding="utf-8") for path in list_sources(example)}
    titled = {block.title: block.code for block in blocks(TUTORIAL) if block.title}
    assert titled == {name: files[name] for name in files if name != "README.md"}
    excerpts = [block for block in blocks(TUTORIAL) if block.language in ("python", "toml") and not block.title]
    source = "\n".join(remove_indents(text) for text in files.values())
    assert [block.code for block in excerpts if not block.runs and remove_indents(block.code) not in source] == []


def list_sources(example) -> list[Path]:
    paths = [path for path in example.rglob("*") if path.suffix in (".py", ".toml", ".md")]
    return sorted(path for path in paths if not {"dist", "build", ".venv"} & set(path.parts))


def remove_indents(text: str) -> str:
    return "\n".join(line.strip() for line in text.splitlines())


def test_the_drawing_is_readable_on_its_own(docs):
    drawing = ET.parse(docs / "explanation" / "architecture.svg").getroot()
    assert drawing.tag == f"{SVG}svg"
    assert drawing.find(f"{SVG}title") is not None
    assert drawing.find(f"{SVG}desc") is not None
    words = " ".join("".join(text.itertext()) for text in drawing.iter(f"{SVG}text"))
    steps = ("generate", "branch", "main", "terms", "kernels", "report")
    assert [name for name in (*steps, *rooms_of_a_generation()) if name not in words] == []
    assert "architecture.svg" in (docs / "explanation" / "architecture.md").read_text(encoding="utf-8")


def rooms_of_a_generation() -> list[str]:
    """The folders of the core that one guarded generation passes through, and the two shelves."""
    core = ("call", "request", "forward", "forward/caches", "forward/interventions", "arithmetic", "strategy", "host")
    folders = [CHECKOUT / "lvlm_guard" / name for name in core] + [CHECKOUT / "kernels", CHECKOUT / "plugins"]
    assert all(folder.is_dir() for folder in folders)
    return ["guard.py", *(f"{folder.name}/" for folder in folders)]


def test_the_table_of_rooms_is_complete(docs):
    """Every file of the core has a row, and every file in a row exists."""
    page = (docs / "explanation" / "architecture.md").read_text(encoding="utf-8")
    rows = "\n".join(line for line in page.splitlines() if line.startswith("| `"))
    listed = set(re.findall(r"`((?:lvlm_guard|kernels|plugins)/[\w/.]*)`", rows))
    assert [path for path in sorted(listed) if not (CHECKOUT / path).exists()] == []
    core = {path.relative_to(CHECKOUT).as_posix() for path in (CHECKOUT / "lvlm_guard").glob("*.py")}
    assert sorted(core - listed - {"lvlm_guard/__init__.py"}) == []


def test_the_comparison_with_other_packages_counts_what_is_bundled(docs):
    page = (docs / "explanation" / "other-packages.md").read_text(encoding="utf-8")
    families = [offer.describe()["family"] for offer in catalogue() if offer.distribution == "lvlm-guard"]
    controls = families.count("control")
    assert f"| {len(families) - controls} and {controls} controls (" in page
    assert "`mitigv`" in (CHECKOUT / "README.md").read_text(encoding="utf-8").partition("\n## ")[0]
