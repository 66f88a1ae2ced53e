"""Statistics and divergences in Triton: slices of rows are measured, then each program adds up what it needs of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lvlm_guard_kernels import launch
from lvlm_guard_kernels.divergence.reference import FLOOR, Mode, RowStatistics

_FLOOR = tl.constexpr(FLOOR)

# A stretch of a row is summed up by its best logit, the total of exp(logit - shift), and the moment, which is the sum
# of (logit - shift) exp(logit - shift). The shift is the best logit, or 0 where that is infinite.


@triton.jit
def _choose_shift(best):
    return tl.where(tl.abs(best) < float("inf"), best, 0.0)


@triton.jit
def _compute_step(best, shift):
    """Return how far sums shifted by `_choose_shift(best)` move under a new shift; at most 0, even if it is `+inf`.

    From `_FLOOR` down sums vanish, and a step stays small enough for its product with a total to be finite.
    """
    return tl.maximum(tl.minimum(tl.where(best == -float("inf"), 0.0, _choose_shift(best) - shift), 0.0), _FLOOR)


@triton.jit
def _load(logits, token, vocabulary):
    return tl.load(logits + token, mask=token < vocabulary, other=-float("inf")).to(tl.float32)


@triton.jit
def _measure_span(logits, start, span, vocabulary, MOMENT: tl.constexpr, WIDTH: tl.constexpr):
    """Return best logit, total and moment of `span` tokens of a row."""
    lane = tl.arange(0, WIDTH)
    totals = tl.zeros([WIDTH], tl.float32)
    moments = tl.zeros([WIDTH], tl.float32)
    best = -float("inf")
    for first in range(start, tl.minimum(start + span, vocabulary), WIDTH):
        values = _load(logits, first + lane, vocabulary)
        new_best = tl.maximum(best, tl.max(tl.where(values == values, values, -float("inf")), axis=0))
        step = _compute_step(best, _choose_shift(new_best))
        centred = values - _choose_shift(new_best)
        weights = tl.exp(centred)
        if MOMENT:
            # A new shift changes both factors of each term: (x + step) exp(x + step), hence the total in the moment.
            moments = (moments + totals * step) * tl.exp(step) + weights * tl.where(weights == 0.0, 0.0, centred)
        totals = totals * tl.exp(step) + weights
        best = new_best
    return best, tl.sum(totals, axis=0), tl.sum(moments, axis=0)


@triton.jit
def _merge_slices(partials, row, rows, parts, PARTS: tl.constexpr, MOMENT: tl.constexpr):
    """Return best logit, total and moment of a row, from those of its slices in `partials` `[3, rows, parts]`."""
    part = tl.arange(0, PARTS)
    exists = part < parts
    partials += row * parts + part
    bests = tl.load(partials, mask=exists, other=-float("inf"))
    totals = tl.load(partials + rows * parts, mask=exists, other=0.0)
    best = tl.max(bests, axis=0)
    step = _compute_step(bests, _choose_shift(best))
    moment = 0.0
    if MOMENT:
        moments = tl.load(partials + 2 * rows * parts, mask=exists, other=0.0)
        moment = tl.sum((moments + totals * step) * tl.exp(step), axis=0)
    return best, tl.sum(totals * tl.exp(step), axis=0), moment


@triton.jit
def _store_statistics(best, total, moment, out, row, rows):
    """Store log-sum-exp, entropy, greatest probability and best logit of a row in `out` `[4, rows]`."""
    finite = tl.abs(best) < float("inf")
    divisor = tl.where(total == 0.0, 1.0, total)
    log_sum_exp = tl.where(finite, _choose_shift(best) + tl.log(divisor), tl.where(total == total, best, float("nan")))
    tl.store(out + row, log_sum_exp)
    tl.store(out + rows + row, tl.where(finite, tl.log(divisor) - moment / divisor, float("nan")))
    tl.store(out + 2 * rows + row, tl.where(finite, 1.0 / divisor, float("nan")))
    tl.store(out + 3 * rows + row, tl.where(total == total, best, float("nan")))


@triton.jit
def measure_slices(
    main, main_outer, main_inner, layers, layers_apart, layers_outer, layers_inner,
    out, positions, vocabulary, members, span,
    LAYERS: tl.constexpr, MOMENT: tl.constexpr, WHOLE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Measure one slice of a row of main, or of one of its layers; for a whole row, store its statistics at once."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    rows, parts = tl.num_programs(0).to(tl.int64), tl.num_programs(1)
    place, member = row // members, row % members
    outer, inner = place // positions, place % positions
    main += outer * main_outer + inner * main_inner
    if LAYERS:
        if member == 0:
            best, total, moment = _measure_span(main, part * span, span, vocabulary, MOMENT, WIDTH)
        else:
            layers += (member - 1) * layers_apart + outer * layers_outer + inner * layers_inner
            best, total, moment = _measure_span(layers, part * span, span, vocabulary, MOMENT, WIDTH)
    else:
        best, total, moment = _measure_span(main, part * span, span, vocabulary, MOMENT, WIDTH)
    if WHOLE:
        _store_statistics(best, total, moment, out, row, rows)
    else:
        out += row * parts + part
        tl.store(out, best)
        tl.store(out + rows * parts, total)
        if MOMENT:
            tl.store(out + 2 * rows * parts, moment)


@triton.jit
def finish_rows(partials, out, parts, PARTS: tl.constexpr):
    """Compute the statistics of one row from those of its slices."""
    row, rows = tl.program_id(0).to(tl.int64), tl.num_programs(0).to(tl.int64)
    best, total, moment = _merge_slices(partials, row, rows, parts, PARTS, MOMENT=True)
    _store_statistics(best, total, moment, out, row, rows)


@triton.jit
def _take_log(total):
    """Return the logarithm of a total; NaN where a row holds only `-inf`, or `+inf`: it has no distribution."""
    has_distribution = (total > 0.0) & (total < float("inf"))
    return tl.where(has_distribution, tl.log(tl.where(has_distribution, total, 1.0)), float("nan"))


@triton.jit
def _compute_terms(log_p, log_q, KIND: tl.constexpr):
    """Return what each token adds to a divergence."""
    p, q = tl.exp(log_p), tl.exp(log_q)
    if KIND == "kl":
        # Both distributions sum to 1, so q - p adds nothing in all, and makes every term at least 0: no cancellation.
        terms = p * tl.where(p == 0.0, 0.0, log_p - tl.where(p == 0.0, 0.0, log_q)) + (q - p)
        terms = tl.where((log_q == -float("inf")) & (log_p != -float("inf")), float("inf"), terms)
    else:
        mean = 0.5 * p + 0.5 * q
        log_mean = tl.log(tl.where(mean == 0.0, 1.0, mean))
        if KIND == "released":
            terms = mean * tl.where(mean == 0.0, 0.0, (log_mean - log_p) + (log_mean - log_q))
            terms = tl.where((log_p == -float("inf")) != (log_q == -float("inf")), float("inf"), terms)
        else:
            terms = 0.5 * p * tl.where(p == 0.0, 0.0, log_p - log_mean)
            terms += 0.5 * q * tl.where(q == 0.0, 0.0, log_q - log_mean)
    return terms


@triton.jit
def diverge_slices(
    main, main_outer, main_inner, layers, layers_apart, layers_outer, layers_inner,
    partials, out, positions, vocabulary, count, span,
    KIND: tl.constexpr, PARTS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Store the divergence of one layer from main in one slice in `out` `[layers, rows, parts]`.

    Programs of the same slice and different layers are neighbours, so that they find main in cache.
    """
    program, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    parts = tl.num_programs(1)
    row, layer = program // count, program % count
    rows = tl.num_programs(0) // count
    outer, inner = row // positions, row % positions
    main += outer * main_outer + inner * main_inner
    layers += layer * layers_apart + outer * layers_outer + inner * layers_inner
    measured = rows.to(tl.int64) * (count + 1)
    best, total, _ = _merge_slices(partials, row * (count + 1), measured, parts, PARTS, MOMENT=False)
    layer_best, layer_total, _ = _merge_slices(
        partials, row * (count + 1) + 1 + layer, measured, parts, PARTS, MOMENT=False
    )
    shift, layer_shift = _choose_shift(best), _choose_shift(layer_best)
    log_total, layer_log_total = _take_log(total), _take_log(layer_total)
    lane = tl.arange(0, WIDTH)
    sums = tl.zeros([WIDTH], tl.float32)
    for first in range(part * span, tl.minimum(part * span + span, vocabulary), WIDTH):
        log_p = _load(main, first + lane, vocabulary) - shift - log_total
        log_q = _load(layers, first + lane, vocabulary) - layer_shift - layer_log_total
        sums += _compute_terms(log_p, log_q, KIND)
    divergence = tl.sum(sums, axis=0)
    tl.store(out + (layer * rows + row) * parts + part, tl.where(divergence < 0.0, 0.0, divergence))


def statistics(logits: Tensor) -> RowStatistics:
    """Run `lvlm_guard_kernels.statistics`."""
    rows = _stack_rows(logits)
    plan = _plan_cuts(rows.shape[0] * rows.shape[1], rows)
    out = torch.empty((4, plan.programs), dtype=torch.float32, device=logits.device)
    if out.numel():
        with launch.use_device(logits):
            partials = (
                out
                if plan.parts == 1
                else torch.empty((3, plan.programs, plan.parts), dtype=torch.float32, device=out.device)
            )
            _measure(rows, None, partials, plan)
            if plan.parts > 1:
                launch.run(
                    finish_rows,
                    (plan.programs,),
                    (partials, out, plan.parts),
                    PARTS=launch.round_up(plan.parts),
                    enable_fp_fusion=False,
                )
    return RowStatistics(*out.view(4, *logits.shape[:-1]))


def log_sum_exp(logits: Tensor) -> Tensor:
    """Run `lvlm_guard_kernels.log_sum_exp`."""
    return statistics(logits).log_sum_exp


def entropy(logits: Tensor) -> Tensor:
    """Run `lvlm_guard_kernels.entropy`."""
    return statistics(logits).entropy


def max_probability(logits: Tensor) -> Tensor:
    """Run `lvlm_guard_kernels.max_probability`."""
    return statistics(logits).max_probability


def kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """Run `lvlm_guard_kernels.kl`."""
    return _diverge(p_logits, q_logits[None], "kl")[0]


def layer_divergence(main: Tensor, layers: Tensor, mode: Mode = "jensen_shannon") -> Tensor:
    """Run `lvlm_guard_kernels.layer_divergence`."""
    return _diverge(main, layers, mode)


class _Cuts(NamedTuple):
    """How rows are cut: into `parts` slices of `span` tokens each, read `width` at a time."""

    programs: int
    parts: int
    span: int
    width: int


def _plan_cuts(programs: int, rows: Tensor) -> _Cuts:
    """Return how to cut rows for a number of programs that each take one."""
    vocabulary, width = rows.shape[-1], launch.choose_width(programs)
    tiles = launch.count_parts(vocabulary, width)
    if launch.rows_fill_device(programs, rows.device):
        return _Cuts(programs, 1, tiles * width, width)
    return _Cuts(programs, tiles, width, width)


def _diverge(main: Tensor, layers: Tensor, kind: str) -> Tensor:
    """Return the divergence of the rows of layers from main's, in two launches and a sum over slices."""
    main_rows, layer_rows = _stack_rows(main), _stack_layers(layers)
    count, rows = len(layers), main_rows.shape[0] * main_rows.shape[1]
    plan = _plan_cuts(rows * (count + 1), main_rows)
    out = torch.empty((count, rows, plan.parts), dtype=torch.float32, device=main.device)
    if out.numel():
        with launch.use_device(main):
            partials = torch.empty((2, plan.programs, plan.parts), dtype=torch.float32, device=out.device)
            _measure(main_rows, layer_rows, partials, plan)
            launch.run(
                diverge_slices,
                (rows * count, plan.parts),
                (
                    *launch.view_rows(main_rows),
                    layer_rows,
                    *layer_rows.stride()[:3],
                    partials,
                    out,
                    main_rows.shape[1],
                    main_rows.shape[2],
                    count,
                    plan.span,
                ),
                KIND=kind,
                PARTS=launch.round_up(plan.parts),
                WIDTH=plan.width,
                num_warps=launch.choose_warps(plan.width),
                enable_fp_fusion=False,
            )
    return (out[..., 0] if plan.parts == 1 else out.sum(-1)).view(layers.shape[:-1])


def _measure(main: Tensor, layers: Tensor | None, out: Tensor, plan: _Cuts) -> None:
    """Measure slices of rows, each followed by its layers; without layers, the moments too."""
    view = launch.view_rows(main)
    layer_view: tuple[Any, ...] = (view[0], 0, 0, 0) if layers is None else (layers, *layers.stride()[:3])
    launch.run(
        measure_slices,
        (plan.programs, plan.parts),
        (
            *view,
            *layer_view,
            out,
            main.shape[1],
            main.shape[2],
            1 if layers is None else len(layers) + 1,
            plan.span,
        ),
        LAYERS=layers is not None,
        MOMENT=layers is None,
        WHOLE=layers is None and plan.parts == 1,
        WIDTH=plan.width,
        num_warps=launch.choose_warps(plan.width),
        enable_fp_fusion=False,
    )


def _stack_rows(logits: Tensor) -> Tensor:
    """Return logits `[..., vocab]` as `[rows, positions, vocab]`."""
    while logits.ndim < 3:
        logits = logits.unsqueeze(0)
    return logits.flatten(1, -2)


def _stack_layers(layers: Tensor) -> Tensor:
    """Return layers `[layers, ..., vocab]` as `[layers, rows, positions, vocab]`, the tokens of a row side by side."""
    while layers.ndim < 4:
        layers = layers.unsqueeze(1)
    layers = layers.flatten(2, -2)
    return layers if layers.stride(-1) == 1 or layers.shape[-1] == 1 else layers.contiguous()
