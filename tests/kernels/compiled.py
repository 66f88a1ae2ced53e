"""Compiles every kernel that some calls would launch, for GPUs that are not here, and prints what came out as JSON.

The calls get tensors without data; what they would launch is compiled instead. Needs no GPU and no CUDA toolkit, but
a process of its own in which Triton does not interpret.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lvlm_guard_kernels
import torch
import triton
from lvlm_guard_kernels import Combination, combine, dispatch, launch, project, select, shift, turn
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime import JITFunction

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
OF_LAUNCHER = 6
"""Values before the kernel's own arguments: stream, function, metadata twice, hooks."""
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def logits(rows: int, vocabulary: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Logits of one position without data; their address counts as aligned."""
    return torch.empty(rows, 1, vocabulary, dtype=dtype, device="meta")


def vcd(rows: int, vocabulary: int) -> Combination:
    """VCD's sum."""
    return Combination(logits(rows, vocabulary), [logits(rows, vocabulary)], [-1.0], main_weight=2.0, beta=0.1)


def contrast(rows: int, vocabulary: int) -> Callable[[], object]:
    """VCD's step."""
    return lambda: combine(vcd(rows, vocabulary))


def everything(rows: int, vocabulary: int) -> Callable[[], object]:
    """All that `combine` can take at once: four sources, weights of rows, bias and restriction."""
    weights = [torch.empty(rows, 1, device="meta") for _ in range(4)]
    sources = [logits(rows, vocabulary) for _ in range(4)]
    keep = torch.empty(vocabulary, dtype=torch.bool, device="meta")
    bias = torch.empty(vocabulary, device="meta")
    return lambda: combine(Combination(logits(rows, vocabulary), sources, weights, beta=0.1, bias=bias, keep=keep))


def layers(rows: int, vocabulary: int) -> Callable[[], object]:
    """DoLa's divergence of 16 layers."""
    stacked = torch.empty(16, rows, 1, vocabulary, dtype=torch.bfloat16, device="meta")
    return lambda: lvlm_guard_kernels.layer_divergence(logits(rows, vocabulary), stacked)


def draw(rows: int, vocabulary: int, **warping: Any) -> Callable[[], object]:
    """VCD's step to the token."""
    return lambda: select(vcd(rows, vocabulary), **warping)


def states(rows: int, width: int) -> Tensor:
    """Hidden states of one position without data."""
    return torch.empty(rows, 1, width, dtype=torch.bfloat16, device="meta")


def directions(count: int, width: int) -> Tensor:
    """Directions in fp32 without data."""
    return torch.empty(count, width, device="meta")


SPECIMENS: dict[str, Callable[[], object]] = {
    "contrast, 1 x 151936": contrast(1, 151936),
    "contrast, 8 x 32000": contrast(8, 32000),
    "contrast, 512 x 151936": contrast(512, 151936),
    "contrast, 8 x 32001": contrast(8, 32001),
    "sum, 8 x 32000": lambda: combine(Combination(logits(8, 32000), [logits(8, 32000)], [0.5])),
    "everything, 8 x 151936": everything(8, 151936),
    "everything, 512 x 151936": everything(512, 151936),
    "statistics, 1 x 151936": lambda: lvlm_guard_kernels.statistics(logits(1, 151936)),
    "statistics, 512 x 151936": lambda: lvlm_guard_kernels.statistics(logits(512, 151936)),
    "layers, 1 x 151936": layers(1, 151936),
    "layers, 64 x 32000": layers(64, 32000),
    "draw, 1 x 151936": draw(1, 151936, temperature=0.8, top_k=50, top_p=0.9),
    "draw, 64 x 32000": draw(64, 32000, temperature=0.8, top_k=50, top_p=0.9),
    "greedy, 8 x 151936": draw(8, 151936, greedy=True),
    "draw from main alone, 4 x 151936": lambda: select(
        Combination(logits(4, 151936)),
        temperature=0.8,
        top_p=0.9,
        step=torch.empty((), dtype=torch.int64, device="meta"),
    ),
    "turn, 1 x 4096": lambda: turn(states(1, 4096), directions(1, 4096)[0], 0.2, opposed=True),
    "turn, 8 x 8192": lambda: turn(states(8, 8192), directions(8, 8192)[:, None], 0.2),
    "project, 8 x 4096": lambda: project(states(8, 4096), directions(4, 4096)),
    "shift, 8 x 3584": lambda: shift(states(8, 3584), directions(1, 3584)[0]),
}


class Driver:
    """As much of a driver as compiling asks for.

    Args:
        number: Of the target among all; what is compiled is kept apart by it.
        target: The GPU to compile for.
    """

    def __init__(self, number: int, target: GPUTarget) -> None:
        self._number = number
        self._target = target

    def get_current_target(self) -> GPUTarget:
        """The GPU to compile for."""
        return self._target

    def get_current_device(self) -> int:
        """The number."""
        return self._number

    def get_current_stream(self, _: int = 0) -> int:
        """The default stream."""
        return 0

    def get_active_torch_device(self) -> torch.device:
        """Where torch's tensors would be."""
        return torch.device("meta")


def launches(call: Callable[[], object]) -> list[tuple[str, Any]]:
    """Name and binary of each kernel that a call launches; they are compiled and not run."""
    run = JITFunction.run
    made: list[tuple[str, Any]] = []

    def compile_only(kernel: Any, *values: Any, warmup: bool, **settings: Any) -> Any:
        del warmup
        made.append((kernel.fn.__name__, run(kernel, *values, warmup=True, **settings)))
        return made[-1][1]

    JITFunction.run = compile_only
    launch.forget()
    try:
        call()
    finally:
        JITFunction.run = run
    return made


def handed_over(call: Callable[[], object], relaunched: bool) -> list[list[Any]]:
    """Grid and arguments that each binary of a call gets: from Triton, or from what a first call left to be remembered."""
    find_run, handles = CompiledKernel.run, CompiledKernel._init_handles
    seen: list[list[Any]] = []

    def note(x: int, y: int, z: int, *values: Any) -> None:
        seen.append([[x, y, z], [show(argument) for argument in values[OF_LAUNCHER:]]])

    CompiledKernel.run = property(lambda _: note)  # type: ignore[assignment] # it has no function to be set
    CompiledKernel._init_handles = lambda _: None  # type: ignore[method-assign] # there is no device to load it on
    launch.forget()
    try:
        call()
        if relaunched:
            seen.clear()
            call()
    finally:
        CompiledKernel.run, CompiledKernel._init_handles = find_run, handles
    return seen


def show(argument: Any) -> Any:
    """An argument as JSON has it."""
    return [str(argument.dtype), *argument.shape] if isinstance(argument, Tensor) else argument


def facts(binary: Any) -> dict[str, Any]:
    """Registers, bytes of stack per thread (anything spilt is there), and loads by width."""
    return of_amd(binary) if "amdgcn" in binary.asm else of_nvidia(binary)


def of_amd(binary: Any) -> dict[str, Any]:
    """From the metadata in the assembly."""
    metadata = {name: int(value) for name, value in re.findall(r"\.(\w+): +(\d+)$", binary.asm["amdgcn"], re.MULTILINE)}
    stack = metadata["private_segment_fixed_size"]
    return {"registers": metadata["vgpr_count"], "stack": stack, "spilt": metadata["vgpr_spill_count"]}


def of_nvidia(binary: Any) -> dict[str, Any]:
    """From the binary and its PTX."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(binary.asm["cubin"])
        command = [CUOBJDUMP, "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK"))
    return {"registers": registers, "stack": stack, "loads": loads(binary.asm["ptx"])}


def loads(ptx: str) -> dict[str, int]:
    """How many loads from global memory are as wide as `v4` or `v8` says; `scalar` are single ones."""
    instructions = re.findall(r"ld\.global\S*", ptx)
    widths = [match[0] if (match := re.findall(r"v\d", name)) else "scalar" for name in instructions]
    return {width: widths.count(width) for width in sorted(set(widths))}


def main() -> None:
    """Compile all specimens for the targets that the command line names."""
    dispatch.find_obstacle = lambda *_, **__: None  # nothing is run, so nothing stands in the way
    os.environ[dispatch.ENVIRONMENT] = "triton"
    rows, relaunches = [], []
    for number, name in enumerate(sys.argv[1:]):
        triton.runtime.driver.set_active(Driver(number, TARGETS[name]))
        for specimen, call in SPECIMENS.items():
            made = launches(call)
            rows += [
                {"target": name, "specimen": specimen, "kernel": kernel, **facts(binary)} for kernel, binary in made
            ]
            if not number and launch.takes_constants():
                first, second = (handed_over(call, relaunched=again) for again in (False, True))
                relaunches.append({"specimen": specimen, "first": first, "second": second})
    print(json.dumps({"rows": rows, "relaunches": relaunches}, indent=1))


if __name__ == "__main__":
    main()
