"""Functions run in several processes that talk over gloo, and what each of them returned."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.multiprocessing.spawn import start_processes

WAIT = timedelta(seconds=60)
"""After which a process that waits for another gives up."""


def run_in_processes(work: Callable[..., Any], count: int, *args: Any) -> list[Any]:
    """Run `work(rank, count, *args)` in so many processes, and return what each of them did, in order.

    Raises:
        ProcessRaisedException: One of them failed; a deadlock fails after a minute.
    """
    with tempfile.TemporaryDirectory() as folder:
        start_processes(_enter, (work, count, folder, args), nprocs=count, start_method="spawn")  # type: ignore[no-untyped-call]
        return [torch.load(Path(folder) / str(rank), weights_only=False) for rank in range(count)]


def _enter(rank: int, work: Callable[..., Any], count: int, folder: str, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=count, timeout=WAIT)
    try:
        torch.save(work(rank, count, *args), Path(folder) / str(rank))
    finally:
        distributed.destroy_process_group()
