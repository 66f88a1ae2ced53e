"""Train the testbed's model from scratch: `python -m lvlm_guard.testbed.training --out DIR`.

Two stages, each resumable: the vision tower on pictures without habits, then projector and language model on pictures
full of them. The same seed, length and number of processes give the same weights.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.multiprocessing.spawn import ProcessException, ProcessExitedException, spawn

from lvlm_guard.errors import GuardError, InputError
from lvlm_guard.files import is_file
from lvlm_guard.testbed.architectures import ARCHITECTURES, find_architecture
from lvlm_guard.testbed.architectures.llava import LLAVA
from lvlm_guard.testbed.errors import TestbedError
from lvlm_guard.testbed.files import check_folder, clear_failure, write_whole
from lvlm_guard.testbed.training.export import export
from lvlm_guard.testbed.training.language_stage import LanguageStage
from lvlm_guard.testbed.training.precision import check_dtype, faster_dtype
from lvlm_guard.testbed.training.trainer import TrainingRun, checkpoint_path, read_checkpoint, train
from lvlm_guard.testbed.training.vision_stage import VisionStage

NOMINAL_MINUTES = LLAVA.minutes
"""How long the default architecture's whole training takes on two CPU cores."""

STAGES = (VisionStage.name, LanguageStage.name)
PLAN = "plan.json"
"""In the folder of checkpoints: what the training started with. It resumes only with the same."""


@dataclass(frozen=True)
class TrainingPlan:
    """A whole training. Batches are counted over all processes together.

    `minutes` is the length on two CPU cores, by default what the full step counts take there; another scales them.
    `device` is "cpu", "cuda" or "cuda:N"; on a GPU there is one process. `arch` is a name of `ARCHITECTURES`. `dtype` is what
    forwards and backwards compute in, "bfloat16" or "float32"; by default the faster one, and that of the checkpoints where
    there are some.
    """

    out: Path
    seed: int = 0
    minutes: float | None = None
    processes: int = 2
    device: str = "cpu"
    compiled: bool = True
    tower_steps: int = 4500
    tower_batch: int = 64
    speaking_steps: int = 4200
    speaking_batch: int = 32
    arch: str = LLAVA.name
    dtype: str | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be trained with."""
        check_dtype(self.dtype)
        if self.seed < 0:
            raise InputError(f"seed must not be negative, got {self.seed}.")
        full = find_architecture(self.arch).minutes
        minutes = full if self.minutes is None else self.minutes
        if not 0 < minutes < math.inf:
            raise InputError(f"minutes must be a number above 0, got {minutes:g}.")
        most = min(self.tower_batch, self.speaking_batch)
        if not 1 <= self.processes <= most:
            raise InputError(f"processes must be from 1 to {most}, one picture each, got {self.processes}.")
        if _device(self.device).type == "cuda" and self.processes > 1:
            raise InputError(f"a GPU is trained on by one process, got processes {self.processes}. Use 1.")

    def scaled(self, steps: int) -> int:
        """The number of steps for the minutes asked for."""
        full = find_architecture(self.arch).minutes
        return max(1, round(steps * (full if self.minutes is None else self.minutes) / full))

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What has to stay the same for an interrupted training to end with the weights of an uninterrupted one."""
        return {
            "arch": self.arch,
            "seed": self.seed,
            "tower_steps": self.scaled(self.tower_steps),
            "tower_batch": self.tower_batch,
            "speaking_steps": self.scaled(self.speaking_steps),
            "speaking_batch": self.speaking_batch,
            "processes": self.processes,
            "device": _device(self.device).type,
            "compiled": self.compiled,
            "dtype": self.dtype,
        }


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise InputError(f"device must be cpu, cuda or cuda:N, got {name!r}.")
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= available:
        raise InputError(
            f"device {name!r}: torch sees {available} CUDA devices here. Use one of those, or --device cpu."
        )
    return device


def run(plan: TrainingPlan) -> None:
    """Train what is not trained yet and write the finished model to `plan.out`.

    Raises:
        InputError: The folder cannot be used, or was begun with another plan.
        TestbedError: A checkpoint cannot be read, or something could not be written.
    """
    plan = begin(plan)
    with _orderly():
        _run(plan)


def begin(plan: TrainingPlan) -> TrainingPlan:
    """Make the folder for the checkpoints, or make sure that those in it can be gone on with; return the plan with its dtype."""
    check_folder(plan.out, "--out")
    folder = plan.out / "training"
    with clear_failure(folder):
        folder.mkdir(parents=True, exist_ok=True)
    noted = folder / PLAN
    if is_file(noted):
        plan = _check_same(plan, noted)
    else:
        plan = replace(plan, dtype=plan.dtype or faster_dtype(plan.device))
        write_whole(noted, (json.dumps(plan.fingerprint, indent=2) + "\n").encode("utf-8"))
    for stage in STAGES:
        path = checkpoint_path(folder, stage)
        if is_file(path):
            read_checkpoint(path)
    return plan


def _check_same(plan: TrainingPlan, noted: Path) -> TrainingPlan:
    try:
        before = dict(json.loads(noted.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as problem:
        raise TestbedError(
            f"{noted} cannot be read ({type(problem).__name__}). Delete it to go on with the checkpoints beside it, or "
            "name another folder."
        ) from problem
    before = {"arch": LLAVA.name, "dtype": "bfloat16", **before}  # the first trainings noted neither
    plan = replace(plan, dtype=plan.dtype or before["dtype"])
    fingerprint = plan.fingerprint
    differences = [
        f"{name} {before.get(name)}, now {value}" for name, value in fingerprint.items() if before.get(name) != value
    ]
    if differences:
        raise InputError(
            f"{plan.out} holds a training begun with {'; '.join(differences)}. Go on with what it was begun with, or name "
            "another folder."
        )
    return plan


@contextmanager
def _orderly() -> Iterator[None]:
    """Let the started processes end with this one, and keep their idle threads off the cores; undone afterwards."""
    policy = os.environ.get("OMP_WAIT_POLICY")
    # Idle threads that spin take the core away from the process that has work.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    in_main_thread = threading.current_thread() is threading.main_thread()
    # Turned into an exit, so that the processes started here end with this one.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(1)) if in_main_thread else None
    try:
        yield
    finally:
        if in_main_thread:
            signal.signal(signal.SIGTERM, before)
        if policy is None:
            del os.environ["OMP_WAIT_POLICY"]


def _run(plan: TrainingPlan) -> None:
    if plan.processes == 1:
        _work(0, plan, 0)
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    messages = get_context("spawn").SimpleQueue()
    try:
        spawn(_work_and_report, args=(plan, port, messages), nprocs=plan.processes, daemon=True)
    except ProcessException as problem:
        if not messages.empty():
            raise TestbedError(messages.get()) from problem
        if isinstance(problem, ProcessExitedException):
            raise TestbedError(f"{problem}. TrainingRun the same command again to resume.") from problem
        raise


def _work_and_report(rank: int, plan: TrainingPlan, port: int, messages: Any) -> None:
    """Work, and hand a clear error on to the process that started this one, which would see a traceback as text."""
    try:
        _work(rank, plan, port)
    except GuardError as problem:
        messages.put(str(problem))
        raise


def _work(rank: int, plan: TrainingPlan, port: int) -> None:
    torch.set_num_threads(1)
    if plan.processes > 1:
        address = f"tcp://127.0.0.1:{port}"
        distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=plan.processes)
    _train_stages(rank, plan)
    if plan.processes > 1:
        distributed.destroy_process_group()


def _train_stages(rank: int, plan: TrainingPlan) -> None:
    architecture = find_architecture(plan.arch)
    model = architecture.build_model(architecture.build_config(), plan.seed).to(plan.device)
    parts = (*architecture.prepare_tower(model), *model.model.language_model.layers)
    for part in parts if plan.compiled else ():
        part.compile()
    folder = plan.out / "training"
    dtype = getattr(torch, plan.dtype or faster_dtype(plan.device))
    vision = VisionStage(architecture, model, plan.tower_batch // plan.processes, plan.seed, dtype)
    train(vision.to(plan.device), TrainingRun(folder, plan.scaled(plan.tower_steps), rank, plan.processes))
    steps = plan.scaled(plan.speaking_steps)
    language = LanguageStage(architecture, model, plan.speaking_batch // plan.processes, plan.seed, steps, dtype)
    train(language.to(plan.device), TrainingRun(folder, steps, rank, plan.processes))
    if rank == 0:
        finish(model, plan)


def finish(model: Any, plan: TrainingPlan) -> None:
    """Write the trained model and the plan it was trained by."""
    export(find_architecture(plan.arch), model, plan.out)
    record = {name: value for name, value in asdict(plan).items() if name not in ("out", "minutes")}
    record.update(tower_steps=plan.scaled(plan.tower_steps), speaking_steps=plan.scaled(plan.speaking_steps))
    record["cores"] = os.cpu_count()
    record["measured_minutes"] = {
        stage: round(logged_minutes(plan.out / "training" / f"{stage}.jsonl"), 1) for stage in ("tower", "speaking")
    }
    write_whole(plan.out / "training.json", (json.dumps(record, indent=2) + "\n").encode("utf-8"))


def logged_minutes(log: Path) -> float:
    """Wall-clock minutes a stage took, all its interrupted parts together; a line that was cut short is left out."""
    lines = log.read_text(encoding="utf-8").splitlines()
    seconds = [json.loads(line)["seconds"] for line in lines if line.endswith("}")]
    ends = [end for end, following in zip(seconds, [*seconds[1:], -1.0], strict=True) if following < end]
    return sum(ends) / 60


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Trains the testbed's model from scratch; run it again to resume.")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and the finished model")
    parser.add_argument("--arch", default=LLAVA.name, help=", ".join(ARCHITECTURES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, help="length on two cores, by default the recipe's; scales the steps")
    parser.add_argument("--processes", type=int, help="one thread each; by default 2, on a GPU 1")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    arguments = parser.parse_args()
    try:
        processes = usual_processes(arguments.device) if arguments.processes is None else arguments.processes
        run(
            TrainingPlan(
                arguments.out, arguments.seed, arguments.minutes, processes, arguments.device, arch=arguments.arch
            )
        )
    except GuardError as problem:
        parser.exit(2, f"{type(problem).__name__}: {problem}\n")


def usual_processes(device: str) -> int:
    """How many processes train on a device where nobody asks for a number."""
    return 1 if device.startswith("cuda") else 2


if __name__ == "__main__":
    main()
