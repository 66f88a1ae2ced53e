"""Random misuse of the public surfaces ends in a result or in a short error of the library.

A slice runs with the suite. `make test-fuzz` runs all of it; FUZZ_SEED draws anew, FUZZ_SCALE multiplies how much.
"""

import os
import random

import pytest
from fuzzing import find_fault

SEED = int(os.environ.get("FUZZ_SEED", "0"))
SCALE = float(os.environ.get("FUZZ_SCALE", "1"))
SHOWN = 12

pytestmark = pytest.mark.usefixtures("bounded_memory")


def run(surface, seed, count, tmp_path):
    faults = []
    for index in range(count):
        folder = tmp_path / str(index)
        folder.mkdir()
        attempt = surface.draw(random.Random(f"{surface.name}/{seed}/{index}"), folder)
        if (fault := find_fault(attempt)) is not None:
            faults.append(f"{surface.name}/{seed}/{index}  {attempt.description[:300]}\n  {fault}")
    assert not faults, f"{len(faults)} of {count}:\n" + "\n".join(faults[:SHOWN])


def test_a_slice(surface, tmp_path):
    run(surface, SEED, surface.slice, tmp_path)


@pytest.mark.slow
@pytest.mark.fuzz
@pytest.mark.timeout(3600)
def test_all(surface, tmp_path):
    run(surface, SEED + 1, int(surface.attempts * SCALE), tmp_path)
