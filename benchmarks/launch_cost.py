"""What the host spends on a kernel call before a driver hears of it: `python benchmarks/launch_cost.py --out benchmarks/results`.

At one row a GPU is done sooner than the host has asked, so the Python before a launch is the time of a step. Kernels are
compiled for a GPU that need not be here, the tensors have no data, and where a launch would go to the driver, a function that
does nothing is called instead. Each call is timed with and without what `launch.run` remembers, in turns in one process.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from measuring import Results, machine, spread
from torch import Tensor

ROUNDS, CALLS = 60, 40
SHOWN = "what", "launches", "ours_us", "triton_us", "ratio"
NOTES = (
    "Microseconds of processor time of this thread per call, medians over interleaved rounds with the 20th and 80th percentile.",
    (
        "ours: `launch.run` finds the binary of the last such call by dtypes, alignment and whole numbers. triton: every launch "
        "goes through Triton's own binder and cache. The ratio is taken within a round."
    ),
    "A launch through the driver, which comes on top, and the GPU's own time are not in these figures.",
)


class Driver:
    """As much of a driver as compiling and launching ask for.

    Args:
        target: The GPU to compile for.
    """

    def __init__(self, target: Any) -> None:
        self._target = target

    def get_current_target(self) -> Any:
        """The GPU to compile for."""
        return self._target

    def get_current_device(self) -> int:
        """Number of the device."""
        return 0

    def get_current_stream(self, _: int = 0) -> int:
        """The default stream."""
        return 0

    def get_active_torch_device(self) -> torch.device:
        """Where torch's tensors would be."""
        return torch.device("meta")


def pretend_gpu() -> None:
    """Let Triton compile for a GPU, and hand its binaries to nobody."""
    import triton  # noqa: PLC0415 - behind the command line
    from lvlm_guard_kernels import dispatch  # noqa: PLC0415
    from triton.backends.compiler import GPUTarget  # noqa: PLC0415
    from triton.compiler import CompiledKernel  # noqa: PLC0415

    triton.runtime.driver.set_active(Driver(GPUTarget("cuda", 90, 32)))
    CompiledKernel.run = property(lambda _: _ignore)
    setattr(CompiledKernel, "_init_handles", _ignore)  # noqa: B010 - private: loads a binary on a device
    setattr(dispatch, "find_obstacle", _ignore)  # noqa: B010 - nothing is run, so nothing stands in the way
    os.environ[dispatch.ENVIRONMENT] = "triton"


def _ignore(*_: Any, **__: Any) -> None:
    """Launch nothing."""


def list_calls() -> dict[str, Callable[[], object]]:
    """Return what a guarded decode step of one row calls, by name."""
    from lvlm_guard_kernels import Combination, combine, select, statistics, turn  # noqa: PLC0415 - behind the command line

    def make(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    main, branch = make(1, 1, 151936), make(1, 1, 151936)
    weight = make(1, 1, dtype=torch.float32)
    hidden, direction = make(1, 1, 4096), make(1, 1, 4096, dtype=torch.float32)
    return {
        "combine": lambda: combine(Combination(main, [branch], [-1.0], 2.0, 0.1)),
        "combine, weights on the device": lambda: combine(Combination(main, [branch], [weight], weight, 0.1)),
        "statistics": lambda: statistics(main),
        "select, top-k and top-p": lambda: select(Combination(main), temperature=0.8, top_k=50, top_p=0.9, seed=1),
        "turn of one layer": lambda: turn(hidden, direction, 0.2, opposed=True),
    }


def measure(call: Callable[[], object], calls: int) -> float:
    """Return microseconds of one call on the processor: what others run meanwhile does not count."""
    start = time.thread_time()
    for _ in range(calls):
        call()
    return (time.thread_time() - start) / calls * 1e6


def race(call: Callable[[], object], rounds: int, calls: int) -> tuple[list[float], list[float]]:
    """Return microseconds with remembered binaries and without, a pair for each round."""
    from lvlm_guard_kernels import launch  # noqa: PLC0415 - behind the command line

    remember = launch.run
    ways: dict[str, Any] = {"ours": remember, "triton": _launch_anew}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name in sorted(ways, reverse=bool(number % 2)):
            launch.run = ways[name]
            measure(call, 2)
            times[name].append(measure(call, calls))
    launch.run = remember
    return times["ours"][1:], times["triton"][1:]


def _launch_anew(kernel: Any, grid: Sequence[int], arguments: Any, *, varying: Any = (), **constants: Any) -> None:
    kernel[tuple(grid)](*arguments, *varying, **constants)


def count_launches(call: Callable[[], object]) -> int:
    """Return how many kernels a call launches."""
    from lvlm_guard_kernels import launch  # noqa: PLC0415 - behind the command line

    seen: list[Any] = []
    run: Any = launch.run

    def note(kernel: Any, *_: Any, **__: Any) -> None:
        seen.append(kernel)

    launch.run = note
    call()
    launch.run = run
    return len(seen)


def main(given: Sequence[str] | None = None) -> int:
    """Time every call, write and print the page."""
    parser = argparse.ArgumentParser(description="Host time of kernel calls, without a driver.")
    parser.add_argument("--out", type=Path, required=True, help="folder for launch_cost.json and launch_cost.md")
    parser.add_argument("--tiny", action="store_true", help="few rounds, to see that the script runs")
    asked = parser.parse_args(given)
    os.environ.pop("TRITON_INTERPRET", None)
    pretend_gpu()
    about = {**machine(torch.device("cpu")), "compiled_for": "sm_90"}
    results = Results(asked.out, "launch_cost", "Host time of a kernel call", about, SHOWN, csv=False, notes=[*NOTES])
    with torch.no_grad():
        for name, call in list_calls().items():
            ours, anew = race(call, *((2, 3) if asked.tiny else (ROUNDS, CALLS)))
            ratios = [mine / other for mine, other in zip(ours, anew, strict=True)]
            results.add(
                what=name,
                launches=count_launches(call),
                **spread("ours_us", ours),
                **spread("triton_us", anew),
                **spread("ratio", ratios),
            )
    results.write()
    print(results.markdown())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
