"""Run a stage of training over one or more processes; it can be stopped at any time and resumes."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, distributed, nn
from tqdm import tqdm

from lvlm_guard.files import is_file
from lvlm_guard.testbed.errors import TestbedError
from lvlm_guard.testbed.files import clear_failure, write_whole

WARMUP = 40
COOLDOWN = 0.3
"""The learning rate rises over WARMUP steps, stays, and falls to zero over the last COOLDOWN of them."""


class Stage(Protocol):
    """What a stage has to offer; it is also a `torch.nn.Module` whose state is saved."""

    name: str
    rate: float
    decay: float

    def trained(self) -> Iterator[nn.Parameter]:
        """The parameters that change."""
        ...

    def loss(self, step: int, rank: int, ranks: int) -> tuple[Tensor, dict[str, float]]:
        """The loss of one step's share, and figures worth logging."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """As `torch.nn.Module.state_dict`."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """As `torch.nn.Module.load_state_dict`."""
        ...


@dataclass(frozen=True)
class TrainingRun:
    """Where a stage is trained: its folder, its length and this process's place among the others."""

    folder: Path
    steps: int
    rank: int = 0
    ranks: int = 1
    save_every: int = 100
    stop_after: int | None = None
    """Stop, with a checkpoint, once this many steps are done; None runs to the end."""


def rate_at(step: int, steps: int) -> float:
    """The share of the full learning rate used in a step, between 0 and 1."""
    cooling = max(1, round(steps * COOLDOWN))
    return min((step + 1) / WARMUP, 1.0, (steps - step) / cooling)


def train(stage: Stage, run: TrainingRun) -> None:
    """Train until `run.steps`; a run that was interrupted ends with the weights of one that was not."""
    optimizer = torch.optim.AdamW(_groups(stage), lr=stage.rate, betas=(0.9, 0.95))
    start = _restore(stage, optimizer, run)
    last = run.steps if run.stop_after is None else min(run.steps, run.stop_after)
    bar = tqdm(range(start, last), initial=start, total=run.steps, desc=stage.name, disable=run.rank > 0, mininterval=5)
    started = time.monotonic()
    for step in bar:
        loss, figures = _step(stage, optimizer, step, run)
        if run.rank == 0 and (step % 20 == 0 or step + 1 == run.steps):
            bar.set_postfix(loss=f"{loss:.3f}")
            _log(run, stage.name, {"step": step, "loss": loss, "seconds": time.monotonic() - started, **figures})
        if (step + 1) % run.save_every == 0 or step + 1 == last:
            _save(stage, optimizer, step + 1, run)


def _groups(stage: Stage) -> list[dict[str, Any]]:
    """Vectors are not decayed: pulling a norm or a bias to zero only hurts."""
    weights = [weight for weight in stage.trained() if weight.requires_grad]
    return [
        {"params": [weight for weight in weights if weight.ndim > 1], "weight_decay": stage.decay},
        {"params": [weight for weight in weights if weight.ndim <= 1], "weight_decay": 0.0},
    ]


def _step(
    stage: Stage, optimizer: torch.optim.Optimizer, step: int, run: TrainingRun
) -> tuple[float, dict[str, float]]:
    for group in optimizer.param_groups:
        group["lr"] = stage.rate * rate_at(step, run.steps)
    optimizer.zero_grad(set_to_none=True)
    loss, figures = stage.loss(step, run.rank, run.ranks)
    loss.backward()
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    if run.ranks > 1:
        _average([weight.grad for weight in weights if weight.grad is not None], run.ranks)
    nn.utils.clip_grad_norm_(weights, 1.0)
    optimizer.step()
    value = loss.item()
    if not math.isfinite(value):
        raise FloatingPointError(f"{stage.name}: the loss is {value} in step {step}; the last checkpoint is untouched.")
    return value, figures


def _average(gradients: list[Tensor], ranks: int) -> None:
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= ranks
    parts = flat.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def checkpoint_path(folder: Path, stage: str) -> Path:
    """Where a stage keeps its checkpoint."""
    return folder / f"{stage}.pt"


def _save(stage: Stage, optimizer: torch.optim.Optimizer, step: int, run: TrainingRun) -> None:
    """Only the first process writes: after averaging, all hold the same weights."""
    if run.rank == 0:
        content = {"step": step, "stage": stage.state_dict(), "optimizer": optimizer.state_dict()}
        buffer = BytesIO()
        torch.save(content, buffer)
        write_whole(checkpoint_path(run.folder, stage.name), buffer.getbuffer())


def _restore(stage: Stage, optimizer: torch.optim.Optimizer, run: TrainingRun) -> int:
    path = checkpoint_path(run.folder, stage.name)
    if not is_file(path):
        return 0
    content = read_checkpoint(path)
    try:
        stage.load_state_dict(content["stage"])
        optimizer.load_state_dict(content["optimizer"])
        return int(content["step"])
    except (KeyError, TypeError, ValueError, RuntimeError) as problem:
        raise TestbedError(f"{path} is a checkpoint of another model. {_remedy(path)}") from problem


def read_checkpoint(path: Path) -> Any:
    """What a stage saved.

    Raises:
        TestbedError: The file is cut short, or no checkpoint at all.
    """
    try:
        return torch.load(path, weights_only=True)
    except Exception as problem:
        # torch raises whatever its archive, pickle or storage reader stumbled over.
        raise TestbedError(f"{path} cannot be read as a checkpoint ({type(problem).__name__}). {_remedy(path)}") from (
            problem
        )


def _remedy(path: Path) -> str:
    return f"Delete {path} to train the stage {path.stem!r} from its beginning, or name another folder."


def _log(run: TrainingRun, stage: str, figures: dict[str, float | str]) -> None:
    path = run.folder / f"{stage}.jsonl"
    with clear_failure(path), path.open("a", encoding="utf-8") as log:
        log.write(json.dumps(figures) + "\n")
