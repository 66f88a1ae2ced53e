"""All plants of the benchmark and all of its sound batteries: `make test-plants`."""

from __future__ import annotations

import os
from pathlib import Path

import plants
import pytest


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_the_goals_are_met(tmp_path):
    """A folder in `PLANTS` is gone on with, where a run was cut short."""
    out = Path(os.environ.get("PLANTS", tmp_path))
    bench = plants.Bench(out)
    plants.make_verdicts(bench, plants.list_cases())
    figures = plants.summarise(out)
    assert figures["shares"]["class"][1] >= 100
    assert figures["shares"]["none"][1] >= 60
    for name, goal in plants.GOALS.items():
        assert figures["shares"][name][0] >= goal, f"{name}: {figures['kinds']}"


def test_cases_are_in_turn_and_each_once():
    cases = plants.list_cases()
    assert len(set(cases)) == len(cases)
    assert sum(case.kind in plants.KINDS for case in cases) >= 100
    assert sum(case.kind == "float32" for case in cases) >= 60
    half = cases[: len(cases) // 2]
    assert {case.kind for case in half} == {case.kind for case in cases}
