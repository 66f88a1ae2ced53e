"""Every kernel on the device against its fp32 reference: values, far offsets, CUDA graphs, repeats."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from kernels_part import use_kernels
from lvlm_guard_kernels import Combination, combine, divergence, project, record_paths, select, shift, turn
from lvlm_guard_kernels.combine.reference import combine as define_combine
from lvlm_guard_kernels.divergence import reference
from lvlm_guard_kernels.hidden import reference as hidden_reference
from lvlm_guard_kernels.select.draw import Draw
from lvlm_guard_kernels.select.reference import select as define_select
from measuring import Budget, Row
from torch import Tensor
from variants import OUT_OF_MEMORY, OUT_OF_TIME

TOLERANCE, OTHER_IDS = 2e-5, 0.01
ROWS, VOCABULARIES = (1, 3, 65, 300), (1, 111, 4097, 32000, 32001, 151936)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
FAR = 2**31
CHECKED = 8
REPEATS, LAYERS = 20, 5
WARPING: dict[str, dict[str, Any]] = {
    "greedy": {"greedy": True, "beta": 0.1},
    "top-k and top-p": {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "beta": 0.1},
    "top-k and top-p over every token": {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "beta": 0.0},
}


@dataclass(frozen=True)
class Inputs:
    """Logits that a kernel may need: main and branch `[rows, 1, vocab]`, layers `[layers, rows, 1, vocab]`."""

    main: Tensor
    branch: Tensor
    layers: Tensor

    @classmethod
    def draw(cls, rows: int, vocabulary: int, device: torch.device, dtype: torch.dtype, seed: int = 0) -> Inputs:
        """Draw random logits with -inf at every third token, as masks leave them; never at the first."""
        draw = torch.Generator(device).manual_seed(seed)
        shape = (2 + LAYERS, rows, 1, vocabulary)
        values = (torch.randn(shape, generator=draw, device=device) * 3).to(dtype)
        values.index_fill_(-1, torch.arange(1, vocabulary, 3, device=device), -math.inf)
        return cls(values[0], values[1], values[2:])

    def last(self, rows: int) -> Inputs:
        """Return the last rows of all."""
        return Inputs(self.main[-rows:], self.branch[-rows:], self.layers[:, -rows:])

    def copy_(self, source: Inputs) -> None:
        """Overwrite with the values of other inputs."""
        for field in fields(self):
            getattr(self, field.name).copy_(getattr(source, field.name))


@dataclass(frozen=True)
class Kernel:
    """A kernel beside its definition; the results of both are compared.

    Args:
        name: Of the kernel, and of the settings.
        run: As the library runs it.
        define: By its reference.
        tolerance: Of the difference.
    """

    name: str
    run: Callable[[Inputs], Tensor]
    define: Callable[[Inputs], Tensor]
    tolerance: float = TOLERANCE


def _check_combine(beta: float, *, everything: bool) -> Kernel:
    def build(inputs: Inputs) -> Combination:
        tokens = torch.arange(inputs.main.shape[-1], device=inputs.main.device)
        weight = -inputs.main[..., 0].float().sigmoid()
        more = {"bias": (tokens % 7) / 7.0, "keep": tokens % 5 != 1} if everything else {}
        return Combination(inputs.main, [inputs.branch], [weight], main_weight=2.0, beta=beta, **more)

    name = f"combine, beta {beta:g}{', bias and keep' if everything else ''}"
    return Kernel(name, lambda inputs: combine(build(inputs)), lambda inputs: define_combine(build(inputs)))


def _stack_statistics(function: Callable[[Tensor], Any]) -> Callable[[Inputs], Tensor]:
    names = [field.name for field in fields(divergence.RowStatistics)]

    def call(inputs: Inputs) -> Tensor:
        statistics = function(inputs.main)
        return torch.stack([getattr(statistics, name) for name in names])

    return call


def _check_divergence(mode: Any) -> Kernel:
    return Kernel(
        f"layer_divergence, {mode}",
        lambda inputs: divergence.layer_divergence(inputs.main, inputs.layers, mode),
        lambda inputs: reference.layer_divergence(inputs.main, inputs.layers, mode),
    )


def _check_select(name: str, warping: dict[str, Any]) -> Kernel:
    settings: dict[str, Any] = {
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "seed": 5,
        "step": 3,
        "greedy": False,
        "rows": None,
    }
    settings |= {key: value for key, value in warping.items() if key in settings}

    def build(inputs: Inputs) -> Combination:
        return Combination(inputs.main, [inputs.branch], [-1.0], main_weight=2.0, beta=warping["beta"])

    return Kernel(
        f"select, {name}",
        lambda inputs: select(build(inputs), **settings).ids,
        lambda inputs: define_select(build(inputs), Draw(**settings))[0],
        0.0 if settings["greedy"] else OTHER_IDS,
    )


HIDDEN = 4096


def _check_edit(name: str, edit: Any, define: Any) -> Kernel:
    """Return the check of an edit: of logits cut to the width of a state, those of the branch as directions."""

    def cut(inputs: Inputs) -> tuple[Tensor, Tensor]:
        width = min(inputs.main.shape[-1], HIDDEN)
        states = inputs.main[..., :width].nan_to_num(0.0, neginf=0.0)
        aim = torch.nn.functional.normalize(inputs.branch[..., :width].float().nan_to_num(0.0, neginf=0.0), dim=-1)
        return states, aim

    def run(inputs: Inputs) -> Tensor:
        states, aim = cut(inputs)
        edited: Tensor = edit(states, aim)
        return edited.to(states.dtype).float()

    def expect(inputs: Inputs) -> Tensor:
        states, aim = cut(inputs)
        edited: Tensor = define(states, aim)
        return edited.to(states.dtype).float()

    return Kernel(name, run, expect, ROUNDED)


ROUNDED = 2.0**-7
"""Of an edited state in bf16, where sums in another order may round to a neighbour."""
FLAT = 5.0
"""A temperature at which two draws of a row are hardly ever the same."""
KERNELS = (
    _check_combine(0.0, everything=False),
    _check_combine(0.1, everything=False),
    _check_combine(0.1, everything=True),
    Kernel("statistics", _stack_statistics(divergence.statistics), _stack_statistics(reference.statistics)),
    _check_divergence("jensen_shannon"),
    _check_divergence("released"),
    _check_edit(
        "turn",
        lambda x, u: turn(x, u, 0.3, opposed=True),
        lambda x, u: hidden_reference.turn(x, u, 0.3, opposed=True),
    ),
    _check_edit("project", lambda x, u: project(x, u, 0.3), lambda x, u: hidden_reference.project(x, u, 0.3)),
    _check_edit("shift", lambda x, u: shift(x, u, 0.3), lambda x, u: hidden_reference.shift(x, u, 0.3)),
    *itertools.starmap(_check_select, WARPING.items()),
)


def difference(got: Tensor, expected: Tensor) -> float:
    """Return the largest difference, relative above 1, infinite where NaN or infinities differ; of ids the share that differs."""
    if not got.is_floating_point():
        return float((got != expected).double().mean())
    if not torch.equal(got.isnan(), expected.isnan()):
        return math.inf
    apart = ((got - expected).abs() / expected.abs().clamp_min(1.0)).masked_fill((got == expected) | got.isnan(), 0.0)
    return float(apart.nan_to_num(math.inf, math.inf).max())


def values(kernel: Kernel, inputs: Inputs) -> float:
    """Against the reference."""
    return difference(kernel.run(inputs), kernel.define(inputs))


def repeats(kernel: Kernel, inputs: Inputs) -> float:
    """Against itself: whichever program finishes first, the result is the same."""
    first = kernel.run(inputs)
    return max(difference(kernel.run(inputs), first) for _ in range(REPEATS))


def graph(kernel: Kernel, inputs: Inputs) -> float:
    """Captured in a CUDA graph and replayed on other values."""
    kernel.run(inputs)
    torch.cuda.synchronize()
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        result = kernel.run(inputs)
    inputs.copy_(Inputs(inputs.branch.clone(), inputs.main.clone(), inputs.layers.flip(0)))
    captured.replay()
    return difference(result, kernel.define(inputs))


def new_draws(kernel: Kernel, inputs: Inputs) -> float:
    """A draw whose step is a tensor, captured once: each replay draws what its step says, and two steps draw apart."""
    step = torch.zeros((), dtype=torch.int64, device=inputs.main.device)
    settings: dict[str, Any] = {"temperature": FLAT, "seed": 5}
    kernel.run(inputs)
    select(Combination(inputs.main), step=step, **settings)
    torch.cuda.synchronize()
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        drawn = select(Combination(inputs.main), step=step, **settings)
    replays = []
    for number in (1, 2):
        step.fill_(number)
        captured.replay()
        replays.append(drawn.ids.clone())
        expected = select(Combination(inputs.main), step=number, **settings).ids
        if not torch.equal(replays[-1], expected):
            return math.inf
    return math.inf if torch.equal(*replays) else 0.0


def far_results(kernel: Kernel, inputs: Inputs) -> float:
    """The last rows of a result that 32 bits do not index."""
    result = kernel.run(inputs)
    assert result.numel() > FAR
    return difference(result[-CHECKED:], kernel.define(inputs.last(CHECKED)))


Case = tuple[str, Callable[[Kernel, Inputs], float], Callable[[], Inputs], Sequence[Kernel]]


def cases(device: torch.device, *, tiny: bool) -> Iterator[Case]:
    """What is checked: a name, how, on which inputs, of which kernels; the dear ones come last."""
    sizes = itertools.product((1, 3), (1, 111, 1000)) if tiny else itertools.product(ROWS, VOCABULARIES)
    for number, (rows, vocabulary) in enumerate(sizes):
        dtype = DTYPES[number % len(DTYPES)]
        name = f"{rows} x {vocabulary}, {str(dtype).removeprefix('torch.')}"
        yield name, values, _drawing(rows, vocabulary, device, dtype), KERNELS
    common = _drawing(3 if tiny else 65, 1000 if tiny else 151936, device, torch.bfloat16)
    yield f"{REPEATS} repeats", repeats, common, KERNELS
    if device.type == "cuda":
        yield "CUDA graph", graph, common, KERNELS
        yield "new draws from one CUDA graph", new_draws, common, KERNELS[-1:]
        yield "strides beyond 2^31", values, lambda: _strided(device), KERNELS
        yield "results beyond 2^31", far_results, lambda: _many(device), KERNELS[:3]


def _drawing(rows: int, vocabulary: int, device: torch.device, dtype: torch.dtype) -> Callable[[], Inputs]:
    return lambda: Inputs.draw(rows, vocabulary, device, dtype)


def _strided(device: torch.device) -> Inputs:
    """The last of so many positions that the last row lies beyond 2^31 entries, 34 GB in all."""
    few = Inputs.draw(8, 151936, device, torch.bfloat16)
    room = torch.empty(2 + LAYERS, 8, FAR // (7 * 151936) + 2, 151936, dtype=torch.bfloat16, device=device)[:, :, -1:]
    far = Inputs(room[0], room[1], room[2:])
    far.copy_(few)
    assert far.main.stride(0) * 7 > FAR
    return far


def _many(device: torch.device) -> Inputs:
    """More than 2^31 logits of main in rows that repeat; one branch row for all."""
    few = Inputs.draw(64, 151936, device, torch.bfloat16)
    main = few.main.repeat(FAR // few.main.numel() + 1, 1, 1)
    return Inputs(main, few.branch[:1].expand_as(main), main[None])


def rows(device: torch.device, budget: Budget, *, tiny: bool) -> Iterator[Row]:
    """A row for every check; a GPU that did not run Triton has failed."""
    with use_kernels("auto"):
        for case, check, draw, kernels in cases(device, tiny=tiny):
            inputs = _attempt(draw) if budget.left else {"status": OUT_OF_TIME}
            for kernel in kernels:
                facts = {"kernel": kernel.name, "case": case}
                yield facts | (inputs if isinstance(inputs, dict) else _run_check(check, kernel, inputs, budget))


def _run_check(check: Callable[[Kernel, Inputs], float], kernel: Kernel, inputs: Inputs, budget: Budget) -> Row:
    if not budget.left:
        return {"status": OUT_OF_TIME}
    with record_paths() as paths:
        result = _attempt(lambda: check(kernel, inputs))
    ran = ", ".join(dict.fromkeys(path.partition(":")[2] for path in paths))
    if isinstance(result, dict):
        return {"ran": ran, **result}
    most = 0.0 if check is repeats else kernel.tolerance
    wrong = f"failed: difference {result:.3g}" if not result <= most else None
    elsewhere = "failed: Triton did not run" if inputs.main.is_cuda and ran != "triton" else None
    return {"ran": ran, "largest_difference": result, "status": wrong or elsewhere or "ok"}


def _attempt(call: Callable[[], Any]) -> Any:
    """What a call returns, or the status that says why it did not."""
    try:
        return call()
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return {"status": OUT_OF_MEMORY}
    except Exception as problem:  # noqa: BLE001 - one check must not hide the others
        return {"status": f"failed: {type(problem).__name__}: {problem}"}
