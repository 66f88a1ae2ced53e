"""Trains the testbed's model again, other seeds and the second architecture: `python benchmarks/seeds.py --out DIR`.

One training after another, each in its own folder `ARCH-SEED`, each with its card. Run again, it goes on where it was.
What was made is told in `manifest.json`. It compares nothing: that is for scripts that read these folders.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import lvlm_guard
from lvlm_guard.errors import GuardError
from lvlm_guard.testbed.architectures import ARCHITECTURES
from lvlm_guard.testbed.card import measuring as card
from lvlm_guard.testbed.files import check_folder, clear_failure, write_whole
from lvlm_guard.testbed.training import train

MANIFEST = "manifest.json"
FIRST, SECOND = ARCHITECTURES
CARD_SCENES = 600


@dataclass(frozen=True)
class Made:
    """One model to be made: its architecture and its seed."""

    arch: str
    seed: int

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.arch}-{self.seed}"


def make(out: Path, wanted: Sequence[Made], minutes: float | None, processes: int, scenes: int) -> None:
    """Trains and measures what is not there yet, and notes every model once it is whole.

    Raises:
        GuardError: A folder was begun with another plan, or something could not be read or written.
    """
    check_folder(out, "--out")
    with clear_failure(out):
        out.mkdir(exist_ok=True)
    noted = _noted(out)
    for one in wanted:
        plan = train.TrainingPlan(out / one.name, one.seed, minutes, processes, arch=one.arch)
        train.run(plan)
        digest = hashlib.sha256((plan.out / "model.safetensors").read_bytes()).hexdigest()
        before = noted.get(one.name, {})
        if (before.get("sha256"), before.get("card_scenes")) == (digest, scenes) and _measured(plan.out):
            continue
        card.write_card(plan.out, scenes)
        noted[one.name] = _entry(plan, digest, scenes)
        write_whole(out / MANIFEST, (json.dumps(noted, indent=2, sort_keys=True) + "\n").encode("utf-8"))


def _noted(out: Path) -> dict[str, Any]:
    path = out / MANIFEST
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _measured(folder: Path) -> bool:
    return all((folder / name).is_file() for name in ("card.json", "MODEL_CARD.md"))


def _entry(plan: train.TrainingPlan, digest: str, scenes: int) -> dict[str, Any]:
    told = json.loads((plan.out / "training.json").read_text(encoding="utf-8"))
    return {
        **plan.fingerprint,
        "asked_minutes": plan.minutes,
        "measured_minutes": told["measured_minutes"],
        "sha256": digest,
        "card_scenes": scenes,
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
        "lvlm_guard": lvlm_guard.__version__,
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Trains seeds of the testbed's model; run it again to resume.")
    parser.add_argument("--out", type=Path, required=True, help="one folder per model goes here, and the manifest")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help=f"of {FIRST}")
    parser.add_argument("--second", type=int, nargs="*", default=[0], help=f"seeds of {SECOND}")
    parser.add_argument("--minutes", type=float, help="length of each on two cores; scales the steps")
    parser.add_argument("--processes", type=int, default=2, help="one thread each")
    parser.add_argument("--scenes", type=int, default=CARD_SCENES, help="of each split, for the cards")
    asked = parser.parse_args()
    wanted = [Made(FIRST, seed) for seed in asked.seeds] + [Made(SECOND, seed) for seed in asked.second]
    try:
        make(asked.out, wanted, asked.minutes, asked.processes, asked.scenes)
    except GuardError as problem:
        parser.exit(2, f"{type(problem).__name__}: {problem}\n")


if __name__ == "__main__":
    main()
