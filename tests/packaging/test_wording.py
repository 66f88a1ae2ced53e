"""The text is the project's own: no path or word of the place where it was written."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

WORKPLACE = re.compile(r"(?<![\w./-])/(?:work|root)/|helper[ ]session|shared[/]reference")


@pytest.mark.skipif(shutil.which("git") is None, reason="git lists the files")
def test_no_file_speaks_of_the_workplace(checkout):
    if not (checkout / ".git").exists():
        pytest.skip("not a checkout")
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=checkout, capture_output=True, check=True, text=True).stdout.split("\0")
    found = [f"{name}:{line}" for name in names if name for line in lines_at_fault(checkout / name)]
    assert found == []


def lines_at_fault(path):
    try:
        text = path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError):
        return []  # pictures, weights, and files that were deleted
    return [number for number, line in enumerate(text.splitlines(), 1) if WORKPLACE.search(line)]


@pytest.mark.parametrize(
    "line", ["see /" + "work/main", "'/" + "root/x'", "a helper" + " session", "shared" + "/reference/a.md"]
)
def test_the_pattern_finds_them(line):
    assert WORKPLACE.search(line)


@pytest.mark.parametrize("line", ["https://example.org/" + "work/", "the work/ folder", "a shared reference"])
def test_the_pattern_leaves_other_text_alone(line):
    assert not WORKPLACE.search(line)
