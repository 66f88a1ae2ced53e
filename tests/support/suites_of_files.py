"""Suites that read the files of others; those of the testbed draw their pictures."""

from __future__ import annotations

from lvlm_guard.bench.catalogue import catalogue

DRAWN = frozenset({"collage", "scenes"})
OF_FILES = tuple(name for name in catalogue().names if name not in DRAWN)
