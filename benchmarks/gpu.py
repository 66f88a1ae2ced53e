"""Benchmarks and checks for a GPU: `python benchmarks/gpu.py --part guard --out results`.

Parts: `guard` times generate with and without each mechanism on random weights in the shapes of LLaVA-1.5-7B and
Qwen2.5-VL-7B; `kernels` times the kernels of the logit path; `correctness` compares these with their references, and
guarded logits with a recompute from scratch; `launches` times a null kernel, the host's part of every call, and counts launches and
busy time of guarded steps; `graphs` times decoding under a static cache, captured, plain against guarded.
Each ends within its time; what was not reached is recorded as skipped, and the exit code is 3; it is 1 where something failed or did not
run. `--tiny --device cpu` runs any part in seconds.
In a checkout that is not installed, set `PYTHONPATH=.:kernels:plugins`.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path

PARTS = {
    "guard": "guard_part",
    "kernels": "kernels_part",
    "correctness": "correctness_part",
    "launches": "launches_part",
    "graphs": "graphs_part",
}
SECONDS = 450.0
FAILURES = "failed", "did not run", "out of memory"


def arguments(parser: argparse.ArgumentParser, given: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser.add_argument("--part", choices=PARTS, required=True, help="what to run")
    parser.add_argument("--out", type=Path, required=True, help="folder for PART.json, PART.csv and PART.md")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default cuda")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, in seconds, to see that the script runs")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"no new measurement after this ({SECONDS:g})")
    asked = parser.parse_args(given)
    if asked.device == "cpu" and not asked.tiny:
        parser.error("--device cpu runs only with --tiny: the full sizes are meant for a GPU.")
    return asked


def main(given: Sequence[str] | None = None) -> int:
    """Run one part, write its files, print its page.

    Returns:
        1 if a check failed or something did not run, 2 if the part cannot run, 3 if nothing failed and the time did not suffice.
    """
    parser = argparse.ArgumentParser(description="Benchmarks and checks for a GPU.")
    asked = arguments(parser, given)
    torch = importlib.import_module("torch")  # behind the command line, so that a wrong one is answered at once
    if asked.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this PyTorch sees no GPU. For a dry run: --tiny --device cpu.")
    results = importlib.import_module(PARTS[asked.part]).run(
        asked.out, torch.device(asked.device), tiny=asked.tiny, seconds=asked.seconds
    )
    results.write()
    print(results.markdown())
    return judge([row["status"] for row in results.rows])


def judge(statuses: Sequence[str]) -> int:
    """Return the exit code for the statuses of all rows: a row that was to run and did not is a failure."""
    if not statuses or any(status.startswith(FAILURES) for status in statuses):
        return 1
    return 3 if any(status.startswith("skipped") for status in statuses) else 0


if __name__ == "__main__":
    raise SystemExit(main())
