"""At the root of the checkout lies what belongs there: nothing that a test or a command left behind was committed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
ROOMS = {"benchmarks", "docs", "kernels", "lvlm_guard", "plugins", "tests", ".ci", ".github"}
PAGES = {
    "CHANGELOG.md", "CITATION.cff", "CODE_OF_CONDUCT.md", "CONTRIBUTING.md", "LICENSE", "README.md", "SECURITY.md",
}  # fmt: skip
SETTINGS = {
    ".gitignore", ".pre-commit-config.yaml", "Makefile", "constraints.txt", "constraints-lowest.txt", "pyproject.toml",
}  # fmt: skip


@pytest.mark.skipif(not (CHECKOUT / ".git").exists() or shutil.which("git") is None, reason="this is no checkout")
def test_nothing_else_was_committed():
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=CHECKOUT, capture_output=True, check=True).stdout
    names = {name.split("/")[0] for name in listing.decode().split("\0") if name}
    assert "lvlm_guard" in names
    assert names - ROOMS - PAGES - SETTINGS == set()
