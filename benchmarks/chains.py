"""What is timed for each kernel: the published chain of eager operations, and the float64 formula that checks results."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from lvlm_guard_kernels import Combination, combine, layer_divergence, select
from lvlm_guard_kernels.combine import reference
from torch import Tensor
from torch.nn.functional import kl_div
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

ALPHA, BETA = 1.0, 0.1
LAYERS = 16
TEMPERATURE, TOP_K, TOP_P = 0.8, 50, 0.9
CHECKED_ROWS = 8
Inputs = tuple[Tensor, ...]
Call = Callable[..., Tensor]


@dataclass(frozen=True)
class Task:
    """One kernel and its competitors; every call takes the inputs.

    Args:
        name: Of the kernel, and of the settings where there are several.
        draw: Inputs for (rows, vocabulary, device, dtype).
        published: Chains as released, by name.
        compilable: What `torch.compile` gets, or None.
        ours: The library's call.
        traffic: Elements read per vocabulary entry and row, and fp32 numbers written; the least any implementation needs.
        error: Difference of a result from the formula in float64; infinite where a result cannot be right.
    """

    name: str
    draw: Callable[[int, int, torch.device, torch.dtype], Inputs]
    published: dict[str, Call]
    compilable: Call | None
    ours: Call
    traffic: tuple[float, float]
    error: Callable[[Inputs, Tensor], float]

    def least_bytes(self, inputs: Inputs) -> float:
        """Return the number of bytes that must be moved."""
        main = inputs[0]
        read, written = self.traffic
        return main.numel() * (read * main.element_size() + written * 4)


def draw_contrast(rows: int, vocabulary: int, device: torch.device, dtype: torch.dtype) -> Inputs:
    """Draw main and branch `[rows, 1, vocab]`; few tokens survive, as in real logits."""
    torch.manual_seed(rows)
    main, branch = (torch.randn(2, rows, 1, vocabulary, device=device) * 3).to(dtype)
    return main, branch


def draw_layers(rows: int, vocabulary: int, device: torch.device, dtype: torch.dtype) -> Inputs:
    """Draw main `[rows, 1, vocab]` and 16 layers `[16, rows, 1, vocab]`."""
    torch.manual_seed(rows)
    main = torch.randn(rows, 1, vocabulary, device=device) * 3
    layers = torch.stack([(main + torch.randn_like(main) * 3).to(dtype) for _ in range(LAYERS)])
    return main.to(dtype), layers


def vcd_chain(main: Tensor, branch: Tensor) -> Tensor:
    """Run VCD's released chain up to the masked logits (`vcd_utils/vcd_sample.py`), one eager operation after another."""
    cutoff = torch.log(torch.tensor(BETA)) + main.max(dim=-1, keepdim=True).values
    diffs = (1 + ALPHA) * main - ALPHA * branch
    return diffs.masked_fill(main < cutoff, -float("inf"))


def contrast(main: Tensor, branch: Tensor) -> Combination:
    """Return VCD's sum as the kernels take it."""
    return Combination(main, [branch], [-ALPHA], main_weight=1 + ALPHA, beta=BETA)


def run_combine(main: Tensor, branch: Tensor) -> Tensor:
    """Run the library's `combine` with VCD's weights."""
    return combine(contrast(main, branch))


def define_combine(main: Tensor, branch: Tensor) -> Tensor:
    """Run the definition of `combine`."""
    return reference.combine(contrast(main, branch))


def measure_contrast(inputs: Inputs, result: Tensor) -> float:
    """Return the largest difference over surviving tokens."""
    main, branch = (logits.double() for logits in inputs)
    expected = (1 + ALPHA) * main - ALPHA * branch
    error = torch.where(_find_survivors(main), result.double() - expected, 0.0).abs().amax()
    return float(error.nan_to_num(torch.inf, torch.inf))


def _find_survivors(main: Tensor) -> Tensor:
    return main >= main.amax(-1, keepdim=True) + math.log(BETA)


def dola_chain(main: Tensor, layers: Tensor) -> Tensor:
    """Compute DoLa's released divergence, half the sum of both directions and the mean over tokens; `[layers, rows, positions]`."""
    mature, premature = main.softmax(-1)[None], layers.softmax(-1)
    mean = 0.5 * (mature + premature)
    log_mature, log_premature = main.log_softmax(-1)[None], layers.log_softmax(-1)
    first = kl_div(log_mature.expand_as(mean), mean, reduction="none").mean(-1)
    second = kl_div(log_premature, mean, reduction="none").mean(-1)
    return 0.5 * (first + second)


def run_divergence(main: Tensor, layers: Tensor) -> Tensor:
    """Run the library's released divergence, on the chain's scale."""
    return layer_divergence(main, layers, "released") / (2 * main.shape[-1])


def measure_divergence(inputs: Inputs, result: Tensor) -> float:
    """Return the largest relative difference over layers and the first rows."""
    main, layers = (inputs[0][:CHECKED_ROWS].double(), inputs[1][:, :CHECKED_ROWS].double())
    worst = 0.0
    for number, layer in enumerate(layers):  # one at a time: float64 copies of all would not fit
        p, q = main.log_softmax(-1), layer.log_softmax(-1)
        mean = torch.logaddexp(p, q) - math.log(2)
        expected = (mean.exp() * (mean - (p + q) / 2)).sum(-1) / main.shape[-1]
        error = ((result[number, :CHECKED_ROWS].double() - expected) / expected).abs().amax()
        worst = max(worst, float(error.nan_to_num(torch.inf, torch.inf)))
    return worst


def vcd_sample(main: Tensor, branch: Tensor, *, top_k: int, top_p: float) -> Tensor:
    """Run VCD's released sampling step after generate's own warpers; ids `[rows]`."""
    scores = vcd_chain(main[:, -1], branch[:, -1])
    ids = torch.empty(main.shape[0], 0, dtype=torch.long, device=main.device)
    scores = TemperatureLogitsWarper(TEMPERATURE)(ids, scores)
    if top_k:
        scores = TopKLogitsWarper(top_k)(ids, scores)
    if top_p < 1.0:
        scores = TopPLogitsWarper(top_p)(ids, scores)
    return torch.multinomial(scores.float().softmax(-1), 1)[:, 0]


def sample_by_noise(main: Tensor, branch: Tensor) -> Tensor:
    """Run the step without top-k and top-p as one expression that a compiler can fuse; ids `[rows]`."""
    scores = define_combine(main, branch)[:, -1] / TEMPERATURE
    return (scores - torch.empty_like(scores).exponential_().log()).argmax(-1)


def run_build_select(main: Tensor, branch: Tensor, *, top_k: int, top_p: float) -> Tensor:
    """Run the library's `select`; ids `[rows]`."""
    return select(contrast(main, branch), temperature=TEMPERATURE, top_k=top_k, top_p=top_p).ids


def measure_selection(inputs: Inputs, result: Tensor) -> float:
    """Return zero if every id is that of a surviving token, else infinity."""
    survives = _find_survivors(inputs[0][:, -1].float())
    valid = bool(((result >= 0) & (result < survives.shape[-1])).all())
    return 0.0 if valid and bool(survives.gather(-1, result[:, None]).all()) else math.inf


def _build_select(name: str, top_k: int, top_p: float) -> Task:
    unwarped = not top_k and top_p == 1.0
    return Task(
        name,
        draw_contrast,
        {"published chain (VCD)": lambda *inputs: vcd_sample(*inputs, top_k=top_k, top_p=top_p)},
        sample_by_noise if unwarped else None,
        lambda *inputs: run_build_select(*inputs, top_k=top_k, top_p=top_p),
        (1.0, 0.0),
        measure_selection,
    )


COMBINE = Task(
    "combine",
    draw_contrast,
    {"published chain (VCD)": vcd_chain},
    define_combine,
    run_combine,
    (1.0, 1.0),  # the branch is needed at the few survivors only
    measure_contrast,
)
DIVERGENCE = Task(
    "layer_divergence",
    draw_layers,
    {"published chain (DoLa)": dola_chain},
    dola_chain,
    run_divergence,
    (1.0 + LAYERS, 0.0),
    measure_divergence,
)
TASKS = (
    COMBINE,
    DIVERGENCE,
    _build_select("select", 0, 1.0),
    _build_select("select, top-k 50", TOP_K, 1.0),
    _build_select("select, top-k 50, top-p 0.9", TOP_K, TOP_P),
)
