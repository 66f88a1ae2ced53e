"""Statistics and divergences in Triton: slices of rows are measured, then each program adds up what it needs of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lvlm_guard_kernels import rows as launching
from lvlm_guard_kernels.divergence.reference import Mode, RowStatistics

# What is known of a stretch of a row: its best logit, the total of exp(logit - shift), and the moment, which is the sum
# of (logit - shift) exp(logit - shift). The shift is the best logit, or 0 where that is infinite.


@triton.jit
def _shift(best):
    return tl.where(tl.abs(best) < float("inf"), best, 0.0)


@triton.jit
def _moved(best, shift):
    """How far sums that were shifted by `_shift(best)` move; at most 0, also where `+inf` turns up."""
    return tl.minimum(tl.where(best == -float("inf"), 0.0, _shift(best) - shift), 0.0)


@triton.jit
def _load(logits, token, vocabulary):
    return tl.load(logits + token, mask=token < vocabulary, other=-float("inf")).to(tl.float32)


@triton.jit
def _measured(logits, start, span, vocabulary, MOMENT: tl.constexpr, WIDTH: tl.constexpr):
    """Best logit, total and moment of `span` tokens of a row."""
    lane = tl.arange(0, WIDTH)
    totals = tl.zeros([WIDTH], tl.float32)
    moments = tl.zeros([WIDTH], tl.float32)
    best = -float("inf")
    for first in range(start, tl.minimum(start + span, vocabulary), WIDTH):
        values = _load(logits, first + lane, vocabulary)
        ahead = tl.maximum(best, tl.max(tl.where(values == values, values, -float("inf")), axis=0))
        step = _moved(best, _shift(ahead))
        centred = values - _shift(ahead)
        weights = tl.exp(centred)
        if MOMENT:
            moments = (moments + totals * step) * tl.exp(step) + weights * tl.where(weights == 0.0, 0.0, centred)
        totals = totals * tl.exp(step) + weights
        best = ahead
    return best, tl.sum(totals, axis=0), tl.sum(moments, axis=0)


@triton.jit
def _merged(partials, row, rows, parts, PARTS: tl.constexpr, MOMENT: tl.constexpr):
    """Best logit, total and moment of a row, from those of its slices in `partials` `[3, rows, parts]`."""
    part = tl.arange(0, PARTS)
    inside = part < parts
    partials += row * parts + part
    bests = tl.load(partials, mask=inside, other=-float("inf"))
    totals = tl.load(partials + rows * parts, mask=inside, other=0.0)
    best = tl.max(bests, axis=0)
    step = _moved(bests, _shift(best))
    moment = 0.0
    if MOMENT:
        moments = tl.load(partials + 2 * rows * parts, mask=inside, other=0.0)
        moment = tl.sum((moments + totals * step) * tl.exp(step), axis=0)
    return best, tl.sum(totals * tl.exp(step), axis=0), moment


@triton.jit
def _finished(best, total, moment, out, row, rows):
    """Store log-sum-exp, entropy, greatest probability and best logit of a row into `out` `[4, rows]`."""
    finite = tl.abs(best) < float("inf")
    some = tl.where(total == 0.0, 1.0, total)
    known = tl.where(finite, _shift(best) + tl.log(some), tl.where(total == total, best, float("nan")))
    tl.store(out + row, known)
    tl.store(out + rows + row, tl.where(finite, tl.log(some) - moment / some, float("nan")))
    tl.store(out + 2 * rows + row, tl.where(finite, 1.0 / some, float("nan")))
    tl.store(out + 3 * rows + row, tl.where(total == total, best, float("nan")))


@triton.jit
def measure_slices(
    main, main_outer, main_inner, layers, layers_apart, layers_outer, layers_inner,
    out, positions, vocabulary, members, span,
    LAYERS: tl.constexpr, MOMENT: tl.constexpr, WHOLE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Measure one slice of a row of main, or of one of its layers; a whole row's statistics are finished at once."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    rows, parts = tl.num_programs(0).to(tl.int64), tl.num_programs(1)
    place, member = row // members, row % members
    outer, inner = place // positions, place % positions
    main += outer * main_outer + inner * main_inner
    if LAYERS:
        if member == 0:
            best, total, moment = _measured(main, part * span, span, vocabulary, MOMENT, WIDTH)
        else:
            layers += (member - 1) * layers_apart + outer * layers_outer + inner * layers_inner
            best, total, moment = _measured(layers, part * span, span, vocabulary, MOMENT, WIDTH)
    else:
        best, total, moment = _measured(main, part * span, span, vocabulary, MOMENT, WIDTH)
    if WHOLE:
        _finished(best, total, moment, out, row, rows)
    else:
        out += row * parts + part
        tl.store(out, best)
        tl.store(out + rows * parts, total)
        if MOMENT:
            tl.store(out + 2 * rows * parts, moment)


@triton.jit
def finish_rows(partials, out, parts, PARTS: tl.constexpr):
    """Statistics of one row from those of its slices."""
    row, rows = tl.program_id(0).to(tl.int64), tl.num_programs(0).to(tl.int64)
    best, total, moment = _merged(partials, row, rows, parts, PARTS, MOMENT=True)
    _finished(best, total, moment, out, row, rows)


@triton.jit
def _log_total(total):
    """Its logarithm; NaN where a row has nothing but `-inf`."""
    return tl.where(total == 0.0, float("nan"), tl.log(tl.where(total == 0.0, 1.0, total)))


@triton.jit
def _terms(log_p, log_q, KIND: tl.constexpr):
    """What each token adds to a divergence."""
    p, q = tl.exp(log_p), tl.exp(log_q)
    if KIND == "kl":
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
    """Divergence of one layer from main in one slice, into `out` `[layers, rows, parts]`.

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
    best, total, _ = _merged(partials, row * (count + 1), measured, parts, PARTS, MOMENT=False)
    layer_best, layer_total, _ = _merged(partials, row * (count + 1) + 1 + layer, measured, parts, PARTS, MOMENT=False)
    shift, layer_shift = _shift(best), _shift(layer_best)
    log_total, layer_log_total = _log_total(total), _log_total(layer_total)
    lane = tl.arange(0, WIDTH)
    sums = tl.zeros([WIDTH], tl.float32)
    for first in range(part * span, tl.minimum(part * span + span, vocabulary), WIDTH):
        log_p = _load(main, first + lane, vocabulary) - shift - log_total
        log_q = _load(layers, first + lane, vocabulary) - layer_shift - layer_log_total
        sums += _terms(log_p, log_q, KIND)
    found = tl.sum(sums, axis=0)
    tl.store(out + (layer * rows + row) * parts + part, tl.where(found < 0.0, 0.0, found))


def statistics(logits: Tensor) -> RowStatistics:
    """As `lvlm_guard_kernels.divergence.statistics`."""
    viewed = _rows(logits)
    plan = _plan(viewed.shape[0] * viewed.shape[1], viewed)
    out = torch.empty((4, plan.programs), dtype=torch.float32, device=logits.device)
    if out.numel():
        with launching.on_device(logits):
            partials = out if plan.parts == 1 else out.new_empty((3, plan.programs, plan.parts))
            _measure(viewed, None, partials, plan)
            if plan.parts > 1:
                finish_rows[plan.programs,](
                    partials, out, plan.parts, PARTS=triton.next_power_of_2(plan.parts), enable_fp_fusion=False
                )
    return RowStatistics(*out.view(4, *logits.shape[:-1]))


def log_sum_exp(logits: Tensor) -> Tensor:
    """As `lvlm_guard_kernels.log_sum_exp`."""
    return statistics(logits).log_sum_exp


def entropy(logits: Tensor) -> Tensor:
    """As `lvlm_guard_kernels.entropy`."""
    return statistics(logits).entropy


def max_probability(logits: Tensor) -> Tensor:
    """As `lvlm_guard_kernels.max_probability`."""
    return statistics(logits).max_probability


def kl(one: Tensor, other: Tensor) -> Tensor:
    """As `lvlm_guard_kernels.kl`."""
    return _diverge(one, other[None], "kl")[0]


def layer_divergence(main: Tensor, layers: Tensor, mode: Mode = "jensen_shannon") -> Tensor:
    """As `lvlm_guard_kernels.layer_divergence`."""
    return _diverge(main, layers, mode)


class _Plan(NamedTuple):
    """How rows are cut: `parts` slices of `span` tokens each, read `width` at a time."""

    programs: int
    parts: int
    span: int
    width: int


def _plan(programs: int, rows: Tensor) -> _Plan:
    vocabulary, width = rows.shape[-1], launching.width(programs)
    tiles = triton.cdiv(vocabulary, width)
    if launching.whole_rows(programs, rows.device):
        return _Plan(programs, 1, tiles * width, width)
    return _Plan(programs, tiles, width, width)


def _diverge(main: Tensor, layers: Tensor, kind: str) -> Tensor:
    """Divergence of stacked rows from main's, in two launches and a sum over slices."""
    viewed, stacked = _rows(main), _stacked(layers)
    count, rows = len(layers), viewed.shape[0] * viewed.shape[1]
    plan = _plan(rows * (count + 1), viewed)
    out = torch.empty((count, rows, plan.parts), dtype=torch.float32, device=main.device)
    if out.numel():
        with launching.on_device(main):
            partials = out.new_empty((2, plan.programs, plan.parts))
            _measure(viewed, stacked, partials, plan)
            diverge_slices[rows * count, plan.parts](
                *launching.strided(viewed),
                stacked,
                *stacked.stride()[:3],
                partials,
                out,
                viewed.shape[1],
                viewed.shape[2],
                count,
                plan.span,
                KIND=kind,
                PARTS=triton.next_power_of_2(plan.parts),
                WIDTH=plan.width,
                num_warps=launching.warps(plan.width),
                enable_fp_fusion=False,
            )
    return (out[..., 0] if plan.parts == 1 else out.sum(-1)).view(layers.shape[:-1])


def _measure(main: Tensor, layers: Tensor | None, out: Tensor, plan: _Plan) -> None:
    """Measure slices of rows, and of their layers behind each; without layers, the moments too."""
    viewed = launching.strided(main)
    more: tuple[Any, ...] = (viewed[0], 0, 0, 0) if layers is None else (layers, *layers.stride()[:3])
    measure_slices[plan.programs, plan.parts](
        *viewed,
        *more,
        out,
        main.shape[1],
        main.shape[2],
        1 if layers is None else len(layers) + 1,
        plan.span,
        LAYERS=layers is not None,
        MOMENT=layers is None,
        WHOLE=layers is None and plan.parts == 1,
        WIDTH=plan.width,
        num_warps=launching.warps(plan.width),
        enable_fp_fusion=False,
    )


def _rows(logits: Tensor) -> Tensor:
    """Logits `[..., vocab]` as `[rows, positions, vocab]`."""
    while logits.ndim < 3:
        logits = logits.unsqueeze(0)
    return logits.flatten(1, -2)


def _stacked(layers: Tensor) -> Tensor:
    """Layers `[layers, ..., vocab]` as `[layers, rows, positions, vocab]`, with the tokens of a row side by side."""
    while layers.ndim < 4:
        layers = layers.unsqueeze(1)
    layers = layers.flatten(2, -2)
    return layers if layers.stride(-1) == 1 or layers.shape[-1] == 1 else layers.contiguous()
