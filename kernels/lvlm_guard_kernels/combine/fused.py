"""`combine` in Triton: one read of main for the best token, one that combines; sources only where main survives."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lvlm_guard_kernels import launch
from lvlm_guard_kernels.combination import RULED_OUT, Combination
from lvlm_guard_kernels.combine.reference import DEMOTION, to_column
from lvlm_guard_kernels.launch import View

SLOTS = 4
"""Sources that one launch takes; more are added up before it."""

_DEMOTION = tl.constexpr(DEMOTION)
_RULED_OUT = tl.constexpr(RULED_OUT)


@triton.jit
def load_eligible(main, keep, token, vocabulary, HAS_KEEP: tl.constexpr):
    """Return logits of main at some tokens, and the same with removed tokens at -inf."""
    exists = token < vocabulary
    logits = tl.load(main + token, mask=exists, other=-float("inf")).to(tl.float32)
    eligible = logits
    if HAS_KEEP:
        allowed = tl.load(keep + token, mask=exists, other=0)
        eligible = tl.where(allowed != 0, logits, -float("inf"))
    return logits, eligible


@triton.jit
def _load_weighted(weight, source, token, survives):
    return weight * tl.load(source + token, mask=survives, other=0.0).to(tl.float32)


@triton.jit
def combine_tokens(
    main, source0, source1, source2, source3, main_weight, weight0, weight1, weight2, weight3,
    bias, keep, top, log_beta, token, vocabulary,
    SOURCES: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_KEEP: tl.constexpr, PLAUSIBLE: tl.constexpr,
):  # fmt: skip
    """Return combined logits of tokens of one row; `top` is its best eligible logit, or NaN if the row holds one."""
    logits, eligible = load_eligible(main, keep, token, vocabulary, HAS_KEEP)
    survives = token < vocabulary
    if PLAUSIBLE:
        survives = (eligible != -float("inf")) & (eligible >= top + log_beta)
    total = logits * main_weight
    if SOURCES > 0:
        total += _load_weighted(weight0, source0, token, survives)
    if SOURCES > 1:
        total += _load_weighted(weight1, source1, token, survives)
    if SOURCES > 2:
        total += _load_weighted(weight2, source2, token, survives)
    if SOURCES > 3:
        total += _load_weighted(weight3, source3, token, survives)
    if HAS_BIAS:
        total += tl.load(bias + token, mask=survives, other=0.0).to(tl.float32)
    if PLAUSIBLE:
        total = tl.where(survives, total, eligible - _DEMOTION)
        # `top` is NaN where the row holds one: comparisons with it are false, so the row is marked here.
        total = tl.where(top == top, total, float("nan"))
    return tl.where(eligible <= _RULED_OUT, eligible, total)


@triton.jit
def find_slice_best(
    main, main_outer, main_inner, keep, keep_outer, keep_inner, best, positions, vocabulary,
    HAS_KEEP: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Store the best eligible logit of one slice of one row, or NaN if it holds one, in `best` `[rows, slices]`."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    outer, inner = row // positions, row % positions
    main += outer * main_outer + inner * main_inner
    keep += outer * keep_outer + inner * keep_inner
    _, eligible = load_eligible(main, keep, part * WIDTH + tl.arange(0, WIDTH), vocabulary, HAS_KEEP)
    # Triton's maximum ignores NaN, so NaN is looked for apart.
    has_nan = tl.max((eligible != eligible).to(tl.int32), axis=0)
    top = tl.max(tl.where(eligible == eligible, eligible, -float("inf")), axis=0)
    tl.store(best + row * tl.num_programs(1) + part, tl.where(has_nan > 0, float("nan"), top))


@triton.jit
def combine_rows(
    main, main_outer, main_inner,
    source0, outer0, inner0, source1, outer1, inner1, source2, outer2, inner2, source3, outer3, inner3,
    weights, main_weight, weight0, weight1, weight2, weight3,
    bias, bias_outer, bias_inner, keep, keep_outer, keep_inner,
    best, log_beta, out, positions, vocabulary,
    SOURCES: tl.constexpr, PER_ROW: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_KEEP: tl.constexpr,
    PLAUSIBLE: tl.constexpr, WHOLE: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Combine one slice of a row, or a whole row; for slices, `best` holds the best logit of each."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    outer, inner = row // positions, row % positions
    main += outer * main_outer + inner * main_inner
    source0 += outer * outer0 + inner * inner0
    source1 += outer * outer1 + inner * inner1
    source2 += outer * outer2 + inner * inner2
    source3 += outer * outer3 + inner * inner3
    bias += outer * bias_outer + inner * bias_inner
    keep += outer * keep_outer + inner * keep_inner
    out += row * vocabulary
    if PER_ROW:
        weights += row * (SOURCES + 1)
        main_weight = tl.load(weights)
        if SOURCES > 0:
            weight0 = tl.load(weights + 1)
        if SOURCES > 1:
            weight1 = tl.load(weights + 2)
        if SOURCES > 2:
            weight2 = tl.load(weights + 3)
        if SOURCES > 3:
            weight3 = tl.load(weights + 4)
    lane = tl.arange(0, WIDTH)
    if WHOLE:
        bests = tl.full([WIDTH], -float("inf"), tl.float32)
        nans = tl.zeros([WIDTH], tl.int32)
        for start in range(0, vocabulary, WIDTH):
            _, eligible = load_eligible(main, keep, start + lane, vocabulary, HAS_KEEP)
            nans = nans | (eligible != eligible).to(tl.int32)
            bests = tl.maximum(bests, tl.where(eligible == eligible, eligible, -float("inf")))
        top = tl.where(tl.max(nans, axis=0) > 0, float("nan"), tl.max(bests, axis=0))
        for start in range(0, vocabulary, WIDTH):
            token = start + lane
            total = combine_tokens(
                main, source0, source1, source2, source3, main_weight, weight0, weight1, weight2, weight3,
                bias, keep, top, log_beta, token, vocabulary, SOURCES, HAS_BIAS, HAS_KEEP, PLAUSIBLE,
            )  # fmt: skip
            tl.store(out + token, total, mask=token < vocabulary)
    else:
        top = 0.0
        if PLAUSIBLE:
            slices = tl.arange(0, PARTS)
            bests = tl.load(
                best + row * tl.num_programs(1) + slices, mask=slices < tl.num_programs(1), other=-float("inf")
            )
            has_nan = tl.max((bests != bests).to(tl.int32), axis=0)
            top = tl.max(tl.where(bests == bests, bests, -float("inf")), axis=0)
            top = tl.where(has_nan > 0, float("nan"), top)
        token = part * WIDTH + lane
        total = combine_tokens(
            main, source0, source1, source2, source3, main_weight, weight0, weight1, weight2, weight3,
            bias, keep, top, log_beta, token, vocabulary, SOURCES, HAS_BIAS, HAS_KEEP, PLAUSIBLE,
        )  # fmt: skip
        tl.store(out + token, total, mask=token < vocabulary)


class Views(NamedTuple):
    """What a program reads of each part of a combination; main stands in where there is nothing to read."""

    main: View
    sources: list[View]
    bias: View
    keep: View


def view_parts(combination: Combination) -> Views:
    """Return views of main `[rows, positions, vocab]`, of `SLOTS` sources, and of bias and restriction in its shape."""
    main = launch.view_rows(combination.main)
    shape = combination.main.shape
    bias, keep = combination.bias, combination.keep
    sources = [launch.view_rows(source) for source in combination.sources]
    return Views(
        main,
        [*sources, *[main] * (SLOTS - len(sources))],
        main if bias is None else launch.view_rows(bias.expand(shape)),
        main if keep is None else launch.view_rows(keep.view(torch.uint8).expand(shape)),
    )


class Weights(NamedTuple):
    """Weights of main and sources, of which a program reads those by row if `per_row`, else the numbers."""

    per_row: bool
    by_row: Tensor
    numbers: list[float]


def arrange_weights(combination: Combination, unread: Tensor) -> Weights:
    """Return weights by row `[rows * positions, weights]` and as `SLOTS + 1` numbers; `unread` stands in for the former."""
    weights = combination.main_weight, *combination.weights
    if any(isinstance(weight, Tensor) for weight in weights):
        return Weights(per_row=True, by_row=pack_weights(combination), numbers=[1.0] * (SLOTS + 1))
    numbers = [float(weight) for weight in weights]
    return Weights(per_row=False, by_row=unread, numbers=[*numbers, *[0.0] * (SLOTS + 1 - len(numbers))])


def pack_weights(combination: Combination) -> Tensor:
    """Return all weights, `[rows * positions, weights]` in fp32 on the device."""
    shape = combination.main.shape[:2]
    columns = [
        weight.to(torch.float32).expand(shape)
        if isinstance(weight, Tensor)
        else combination.main.new_full(shape, weight, dtype=torch.float32)
        for weight in (combination.main_weight, *combination.weights)
    ]
    return torch.stack(columns, dim=-1).flatten(0, 1)


def fit_into_slots(combination: Combination) -> Combination:
    """Return a combination of at most `SLOTS` sources, of which the last one stands for all others."""
    sources, weights = combination.sources, combination.weights
    if len(sources) <= SLOTS:
        return combination
    surplus = zip(sources[SLOTS - 1 :], weights[SLOTS - 1 :], strict=True)
    total = torch.stack([source.float() * to_column(weight) for source, weight in surplus]).sum(0)
    return replace(combination, sources=[*sources[: SLOTS - 1], total], weights=[*weights[: SLOTS - 1], 1.0])


def combine(combination: Combination) -> Tensor:
    """Run `lvlm_guard_kernels.combine`."""
    main = combination.main
    out = torch.empty(main.shape, dtype=torch.float32, device=main.device)
    if out.numel():
        with launch.use_device(main):
            _launch(fit_into_slots(combination.with_positions()), out)
    return out


def _launch(combination: Combination, out: Tensor) -> None:
    """Launch what a combination of main `[rows, positions, vocab]` and at most `SLOTS` sources needs."""
    count, positions, vocabulary = combination.main.shape
    rows, plausible = count * positions, combination.beta > 0.0
    whole = plausible and launch.rows_fill_device(rows, out.device)
    width = launch.choose_width(rows)
    parts = 1 if whole else triton.cdiv(vocabulary, width)
    views, weights = view_parts(combination), arrange_weights(combination, out)
    constants: dict[str, Any] = {
        "HAS_KEEP": combination.keep is not None,
        "WIDTH": width,
        "num_warps": launch.choose_warps(width),
        "enable_fp_fusion": False,  # every sum is rounded as the reference rounds it
    }
    best = out
    if plausible and not whole:
        best = out.new_empty((rows, parts))
        find_slice_best[rows, parts](*views.main, *views.keep, best, positions, vocabulary, **constants)
    combine_rows[rows, parts](
        *views.main,
        *chain.from_iterable(views.sources),
        weights.by_row,
        *weights.numbers,
        *views.bias,
        *views.keep,
        best,
        combination.log_beta,
        out,
        positions,
        vocabulary,
        SOURCES=len(combination.sources),
        PER_ROW=weights.per_row,
        HAS_BIAS=combination.bias is not None,
        PLAUSIBLE=plausible,
        WHOLE=whole,
        PARTS=triton.next_power_of_2(parts),
        **constants,
    )
