"""transformers' own generation tests, run from a checkout with and without an inert guard: the same ones fail.

`make test-generation TRANSFORMERS=path` installs the checkout in an environment of its own and runs this.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

CHECKOUT = os.environ.get("TRANSFORMERS", "")
MODELS = ("llava", "qwen2_5_vl", "idefics3", "gemma3", "mllama", "florence2")
LEFT_OUT = os.environ.get("LEFT_OUT", "compil or recompile")
"""Minutes each, and about the compiler."""
PLUGIN = Path(__file__).parent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not CHECKOUT, reason="TRANSFORMERS names no checkout of transformers"),
]


def run(model: str, kind: str, folder: Path) -> dict[str, str]:
    """How each test of a model type ends with a guard of this kind."""
    outcomes = folder / f"{model}-{kind}.json"
    environment = {**os.environ, "PYTHONPATH": str(PLUGIN)}
    command = [
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "inert_guard", f"--inert-guard={kind}",
        f"--outcomes={outcomes}", "-k", f"not ({LEFT_OUT})", f"tests/models/{model}/test_modeling_{model}.py",
    ]  # fmt: skip
    ended = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=False)
    kept = json.loads(outcomes.read_text()) if outcomes.exists() else {}
    assert kept, ended.stdout[-2000:] + ended.stderr[-2000:]
    return kept


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A function from a model type to how its tests end without a guard, run once."""
    folder = tmp_path_factory.mktemp("plain")
    return functools.cache(lambda model: run(model, "off", folder))


@pytest.mark.parametrize("kind", ["empty", "neutral"])
@pytest.mark.parametrize("model", MODELS)
def test_an_inert_guard_changes_no_outcome(plain, model, kind, tmp_path):
    without, outcomes = plain(model), run(model, kind, tmp_path)
    refused = {name: outcome for name, outcome in outcomes.items() if outcome.startswith("refused")}
    counts = dict(Counter(without.values()))
    print(f"{model} {kind}: {len(without)} tests, without a guard {counts}, refused {len(refused)}")
    assert counts.get("passed", 0) > 20
    assert outcomes.keys() == without.keys()
    assert {
        name: outcome for name, outcome in outcomes.items() if name not in refused and without[name] != outcome
    } == {}
    if kind == "empty":
        assert refused == {}
