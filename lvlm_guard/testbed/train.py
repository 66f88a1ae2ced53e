"""Trains the testbed's model from scratch: `python -m lvlm_guard.testbed.train --out DIR`.

Two stages, each resumable: the vision tower on pictures without habits, then projector and language model on pictures
full of them. The same seed, length and number of processes give the same weights.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import distributed
from torch.multiprocessing.spawn import spawn
from transformers import LlavaForConditionalGeneration

from .export import export
from .files import write_whole
from .model import build_config, build_model
from .speaking import SpeakingStage
from .tower import TowerStage
from .trainer import Run, train

NOMINAL_MINUTES = 30.0
"""What the full step counts took on two CPU cores; other lengths scale the step counts."""


@dataclass(frozen=True)
class Plan:
    """A whole training. Batches are counted over all processes together."""

    out: Path
    seed: int = 0
    minutes: float = NOMINAL_MINUTES
    processes: int = 2
    compiled: bool = True
    tower_steps: int = 4500
    tower_batch: int = 64
    speaking_steps: int = 2400
    speaking_batch: int = 32

    def scaled(self, steps: int) -> int:
        """The number of steps for the minutes asked for."""
        return max(1, round(steps * self.minutes / NOMINAL_MINUTES))


def run(plan: Plan) -> None:
    """Trains what is not trained yet and writes the finished model to `plan.out`."""
    with _orderly():
        _run(plan)


@contextmanager
def _orderly() -> Iterator[None]:
    """Lets the started processes end with this one, and keeps their idle threads off the cores; undone afterwards."""
    policy = os.environ.get("OMP_WAIT_POLICY")
    # Idle threads that spin take the core away from the process that has work.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    here = threading.current_thread() is threading.main_thread()
    # Turned into an exit, so that the processes started here end with this one.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(1)) if here else None
    try:
        yield
    finally:
        if here:
            signal.signal(signal.SIGTERM, before)
        if policy is None:
            del os.environ["OMP_WAIT_POLICY"]


def _run(plan: Plan) -> None:
    (plan.out / "training").mkdir(parents=True, exist_ok=True)
    if plan.processes == 1:
        _work(0, plan, 0)
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(_work, args=(plan, port), nprocs=plan.processes, daemon=True)


def _work(rank: int, plan: Plan, port: int) -> None:
    torch.set_num_threads(1)
    if plan.processes > 1:
        address = f"tcp://127.0.0.1:{port}"
        distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=plan.processes)
    _train_stages(rank, plan)
    if plan.processes > 1:
        distributed.destroy_process_group()


def _train_stages(rank: int, plan: Plan) -> None:
    config = build_config()
    model = build_model(config, plan.seed)
    # On a CPU its backward is a third faster than that of the fused kernel.
    model.model.vision_tower.set_attn_implementation("eager")
    if plan.compiled:
        model.model.vision_tower.compile()
        for layer in model.model.language_model.layers:
            layer.compile()
    folder = plan.out / "training"
    hidden = config.vision_config.hidden_size
    tower = TowerStage(model.model.vision_tower, hidden, plan.tower_batch // plan.processes, plan.seed)
    train(tower, Run(folder, plan.scaled(plan.tower_steps), rank, plan.processes))
    speaking = SpeakingStage(model, plan.speaking_batch // plan.processes, plan.seed)
    train(speaking, Run(folder, plan.scaled(plan.speaking_steps), rank, plan.processes))
    if rank == 0:
        finish(model, plan)


def finish(model: LlavaForConditionalGeneration, plan: Plan) -> None:
    """Writes the trained model and the plan it was trained by."""
    export(model, plan.out)
    record = {name: value for name, value in asdict(plan).items() if name not in ("out", "minutes")}
    record.update(tower_steps=plan.scaled(plan.tower_steps), speaking_steps=plan.scaled(plan.speaking_steps))
    record["measured_minutes"] = {
        stage: round(logged_minutes(plan.out / "training" / f"{stage}.jsonl"), 1) for stage in ("tower", "speaking")
    }
    write_whole(plan.out / "training.json", (json.dumps(record, indent=2) + "\n").encode("utf-8"))


def logged_minutes(log: Path) -> float:
    """Wall-clock minutes a stage took, all its interrupted parts together."""
    seconds = [json.loads(line)["seconds"] for line in log.read_text(encoding="utf-8").splitlines()]
    ends = [now for now, after in zip(seconds, [*seconds[1:], -1.0], strict=True) if after < now]
    return sum(ends) / 60


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Trains the testbed's model from scratch; run it again to resume.")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and the finished model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=NOMINAL_MINUTES, help="length on two cores; scales the steps")
    parser.add_argument("--processes", type=int, default=2, help="one thread each")
    asked = parser.parse_args()
    run(Plan(asked.out, asked.seed, asked.minutes, asked.processes))


if __name__ == "__main__":
    main()
