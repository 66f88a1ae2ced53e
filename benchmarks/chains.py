"""What is timed of each kernel: the published chain of eager operations, and the formula in float64 to hold results to."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from lvlm_guard_kernels.combine import combine, reference
from lvlm_guard_kernels.divergence import layer_divergence
from lvlm_guard_kernels.select import select
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
    """One kernel and what it competes with; every call takes the inputs.

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
        """Bytes that must be moved."""
        main = inputs[0]
        read, written = self.traffic
        return main.numel() * (read * main.element_size() + written * 4)


def contrast_inputs(rows: int, vocabulary: int, device: torch.device, dtype: torch.dtype) -> Inputs:
    """Main and branch `[rows, 1, vocab]`; few tokens survive, as in real logits."""
    torch.manual_seed(rows)
    one, other = (torch.randn(2, rows, 1, vocabulary, device=device) * 3).to(dtype)
    return one, other


def layer_inputs(rows: int, vocabulary: int, device: torch.device, dtype: torch.dtype) -> Inputs:
    """Main `[rows, 1, vocab]` and 16 layers `[16, rows, 1, vocab]`."""
    torch.manual_seed(rows)
    main = torch.randn(rows, 1, vocabulary, device=device) * 3
    layers = torch.stack([(main + torch.randn_like(main) * 3).to(dtype) for _ in range(LAYERS)])
    return main.to(dtype), layers


def vcd_chain(main: Tensor, branch: Tensor) -> Tensor:
    """VCD's released chain up to the masked logits (`vcd_utils/vcd_sample.py`), one eager operation after another."""
    cutoff = torch.log(torch.tensor(BETA)) + main.max(dim=-1, keepdim=True).values
    diffs = (1 + ALPHA) * main - ALPHA * branch
    return diffs.masked_fill(main < cutoff, -float("inf"))


def combined(main: Tensor, branch: Tensor) -> Tensor:
    """The library's `combine` with VCD's weights."""
    return combine(main, [branch], [-ALPHA], main_weight=1 + ALPHA, beta=BETA)


def combine_definition(main: Tensor, branch: Tensor) -> Tensor:
    """Its definition."""
    return reference.combine(main, [branch], [-ALPHA], main_weight=1 + ALPHA, beta=BETA)


def contrast_error(inputs: Inputs, result: Tensor) -> float:
    """Largest difference over surviving tokens."""
    main, branch = (one.double() for one in inputs)
    wanted = (1 + ALPHA) * main - ALPHA * branch
    error = torch.where(_survives(main), result.double() - wanted, 0.0).abs().amax()
    return float(error.nan_to_num(torch.inf, torch.inf))


def _survives(main: Tensor) -> Tensor:
    return main >= main.amax(-1, keepdim=True) + math.log(BETA)


def dola_chain(main: Tensor, layers: Tensor) -> Tensor:
    """DoLa's released divergence, half the sum of both directions and the mean over tokens; `[layers, rows, positions]`."""
    mature, premature = main.softmax(-1)[None], layers.softmax(-1)
    mean = 0.5 * (mature + premature)
    log_mature, log_premature = main.log_softmax(-1)[None], layers.log_softmax(-1)
    first = kl_div(log_mature.expand_as(mean), mean, reduction="none").mean(-1)
    second = kl_div(log_premature, mean, reduction="none").mean(-1)
    return 0.5 * (first + second)


def released(main: Tensor, layers: Tensor) -> Tensor:
    """The library's released divergence, on the chain's scale."""
    return layer_divergence(main, layers, "released") / (2 * main.shape[-1])


def divergence_error(inputs: Inputs, result: Tensor) -> float:
    """Largest relative difference over layers and the first rows."""
    main, layers = (inputs[0][:CHECKED_ROWS].double(), inputs[1][:, :CHECKED_ROWS].double())
    worst = 0.0
    for number, layer in enumerate(layers):  # one at a time: float64 copies of all would not fit
        p, q = main.log_softmax(-1), layer.log_softmax(-1)
        mean = torch.logaddexp(p, q) - math.log(2)
        wanted = (mean.exp() * (mean - (p + q) / 2)).sum(-1) / main.shape[-1]
        error = ((result[number, :CHECKED_ROWS].double() - wanted) / wanted).abs().amax()
        worst = max(worst, float(error.nan_to_num(torch.inf, torch.inf)))
    return worst


def sampled(main: Tensor, branch: Tensor, *, top_k: int, top_p: float) -> Tensor:
    """VCD's released sampling step behind generate's own warpers; ids `[rows]`."""
    scores = vcd_chain(main[:, -1], branch[:, -1])
    ids = torch.empty(main.shape[0], 0, dtype=torch.long, device=main.device)
    scores = TemperatureLogitsWarper(TEMPERATURE)(ids, scores)
    if top_k:
        scores = TopKLogitsWarper(top_k)(ids, scores)
    if top_p < 1.0:
        scores = TopPLogitsWarper(top_p)(ids, scores)
    return torch.multinomial(scores.float().softmax(-1), 1)[:, 0]


def gumbel(main: Tensor, branch: Tensor) -> Tensor:
    """The step without top-k and top-p as one expression that a compiler can fuse; ids `[rows]`."""
    scores = combine_definition(main, branch)[:, -1] / TEMPERATURE
    return (scores - torch.empty_like(scores).exponential_().log()).argmax(-1)


def selected(main: Tensor, branch: Tensor, *, top_k: int, top_p: float) -> Tensor:
    """The library's `select`; ids `[rows]`."""
    warping: dict[str, Any] = {"temperature": TEMPERATURE, "top_p": top_p}
    chosen = select(main, [branch], [-ALPHA], main_weight=1 + ALPHA, beta=BETA, top_k=top_k, **warping)
    return chosen.ids


def selection_error(inputs: Inputs, result: Tensor) -> float:
    """Zero if every id is one of a surviving token, else infinite."""
    survives = _survives(inputs[0][:, -1].float())
    valid = bool(((result >= 0) & (result < survives.shape[-1])).all())
    return 0.0 if valid and bool(survives.gather(-1, result[:, None]).all()) else math.inf


def _select(name: str, top_k: int, top_p: float) -> Task:
    plain = not top_k and top_p == 1.0
    return Task(
        name,
        contrast_inputs,
        {"published chain (VCD)": lambda *inputs: sampled(*inputs, top_k=top_k, top_p=top_p)},
        gumbel if plain else None,
        lambda *inputs: selected(*inputs, top_k=top_k, top_p=top_p),
        (1.0, 0.0),
        selection_error,
    )


COMBINE = Task(
    "combine",
    contrast_inputs,
    {"published chain (VCD)": vcd_chain},
    combine_definition,
    combined,
    (1.0, 1.0),  # the branch is needed at the few survivors only
    contrast_error,
)
DIVERGENCE = Task(
    "layer_divergence",
    layer_inputs,
    {"published chain (DoLa)": dola_chain},
    dola_chain,
    released,
    (1.0 + LAYERS, 0.0),
    divergence_error,
)
TASKS = (
    COMBINE,
    DIVERGENCE,
    _select("select", 0, 1.0),
    _select("select, top-k 50", TOP_K, 1.0),
    _select("select, top-k 50, top-p 0.9", TOP_K, TOP_P),
)
