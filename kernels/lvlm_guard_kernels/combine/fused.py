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
from lvlm_guard_kernels.combination import RULED_OUT, Combination, Weight
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
def load_weight(weight, outer, inner, BY_POINTER: tl.constexpr):
    """Return a weight of one row, which is a number or lies at a pointer."""
    value = weight
    if BY_POINTER:
        value = tl.load(weight + outer + inner).to(tl.float32)
    return value


@triton.jit
def _load_weighted(weight, source, token, survives):
    return weight * tl.load(source + token, mask=survives, other=0.0).to(tl.float32)


@triton.jit
def combine_tokens(
    main, source0, source1, source2, source3, main_weight, weight0, weight1, weight2, weight3,
    bias, keep, top, log_beta, token, vocabulary,
    SOURCES: tl.constexpr, HAS_BASE: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_KEEP: tl.constexpr,
    PLAUSIBLE: tl.constexpr,
):  # fmt: skip
    """Return combined logits of tokens of one row; `top` is its best eligible logit, or NaN if the row holds one.

    With `HAS_BASE`, the first source is a sum to go on from, main's own part included.
    """
    logits, eligible = load_eligible(main, keep, token, vocabulary, HAS_KEEP)
    survives = token < vocabulary
    if PLAUSIBLE:
        survives = (eligible != -float("inf")) & (eligible >= top + log_beta)
    if HAS_BASE:
        total = tl.load(source0 + token, mask=survives, other=0.0)
    else:
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
    main_weight, main_weight_outer, main_weight_inner, weight0, weight_outer0, weight_inner0,
    weight1, weight_outer1, weight_inner1, weight2, weight_outer2, weight_inner2, weight3, weight_outer3, weight_inner3,
    bias, bias_outer, bias_inner, keep, keep_outer, keep_inner,
    best, log_beta, out, positions, vocabulary,
    SOURCES: tl.constexpr, HAS_BASE: tl.constexpr, BY_POINTER: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_KEEP: tl.constexpr, PLAUSIBLE: tl.constexpr, WHOLE: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr,
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
    main_part = load_weight(main_weight, outer * main_weight_outer, inner * main_weight_inner, BY_POINTER & 1)
    first = load_weight(weight0, outer * weight_outer0, inner * weight_inner0, BY_POINTER & 2)
    second = load_weight(weight1, outer * weight_outer1, inner * weight_inner1, BY_POINTER & 4)
    third = load_weight(weight2, outer * weight_outer2, inner * weight_inner2, BY_POINTER & 8)
    fourth = load_weight(weight3, outer * weight_outer3, inner * weight_inner3, BY_POINTER & 16)
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
                main, source0, source1, source2, source3, main_part, first, second, third, fourth,
                bias, keep, top, log_beta, token, vocabulary, SOURCES, HAS_BASE, HAS_BIAS, HAS_KEEP, PLAUSIBLE,
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
            main, source0, source1, source2, source3, main_part, first, second, third, fourth,
            bias, keep, top, log_beta, token, vocabulary, SOURCES, HAS_BASE, HAS_BIAS, HAS_KEEP, PLAUSIBLE,
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
    """Weights of main and of `SLOTS` sources, each with its strides over rows and positions.

    Args:
        by_pointer: A bit for each weight that is a tensor, main's the lowest; the others are numbers.
        views: The weights.
    """

    by_pointer: int
    views: list[tuple[Weight, int, int]]


def view_weights(combination: Combination) -> Weights:
    """Return the weights of main `[rows, positions, vocab]` and of at most `SLOTS` sources as a kernel takes them."""
    weights = [combination.main_weight, *combination.weights]
    views = [_view_weight(weight, combination.main.shape[:2]) for weight in weights]
    by_pointer = sum(isinstance(weight, Tensor) << number for number, weight in enumerate(weights))
    return Weights(by_pointer, [*views, *[(0.0, 0, 0)] * (SLOTS + 1 - len(views))])


def _view_weight(weight: Weight, shape: torch.Size) -> tuple[Weight, int, int]:
    if not isinstance(weight, Tensor):
        return float(weight), 0, 0
    outer, inner = weight.expand(shape).stride()
    return weight, outer, inner


class Slots(NamedTuple):
    """A combination that fits into one launch, and whether its first source is a sum that others go on from."""

    combination: Combination
    has_base: bool


def fit_into_slots(combination: Combination) -> Slots:
    """Add up what one launch has no room for, in the order of the definition, with main's own part first."""
    sources, weights = combination.sources, combination.weights
    surplus = len(sources) - SLOTS + 1
    if surplus <= 1:
        return Slots(combination, has_base=False)
    total = combination.main.float() * to_column(combination.main_weight)
    for source, weight in zip(sources[:surplus], weights[:surplus], strict=True):
        total = total + source.float() * to_column(weight)
    remainder = replace(
        combination, sources=[total, *sources[surplus:]], weights=[1.0, *weights[surplus:]], main_weight=1.0
    )
    return Slots(remainder, has_base=True)


def combine(combination: Combination) -> Tensor:
    """Run `lvlm_guard_kernels.combine`."""
    main = combination.main
    out = torch.empty(main.shape, dtype=torch.float32, device=main.device)
    if out.numel():
        with launch.use_device(main):
            _launch(fit_into_slots(combination.with_positions()), out)
    return out


def _launch(slots: Slots, out: Tensor) -> None:
    """Launch what a combination of main `[rows, positions, vocab]` and at most `SLOTS` sources needs."""
    combination = slots.combination
    count, positions, vocabulary = combination.main.shape
    rows, plausible = count * positions, combination.beta > 0.0
    whole = plausible and launch.rows_fill_device(rows, out.device)
    width = launch.choose_width(rows)
    parts = 1 if whole else launch.count_parts(vocabulary, width)
    views, weights = view_parts(combination), view_weights(combination)
    constants: dict[str, Any] = {
        "HAS_KEEP": combination.keep is not None,
        "WIDTH": width,
        "num_warps": launch.choose_warps(width),
        "enable_fp_fusion": False,  # every sum is rounded as the reference rounds it
    }
    best = out
    if plausible and not whole:
        best = torch.empty((rows, parts), dtype=torch.float32, device=out.device)
        arguments = *views.main, *views.keep, best, positions, vocabulary
        launch.run(find_slice_best, (rows, parts), arguments, **constants)
    launch.run(
        combine_rows,
        (rows, parts),
        (
            *views.main,
            *chain.from_iterable(views.sources),
            *chain.from_iterable(weights.views),
            *views.bias,
            *views.keep,
            best,
            combination.log_beta,
            out,
            positions,
            vocabulary,
        ),
        SOURCES=len(combination.sources),
        HAS_BASE=slots.has_base,
        BY_POINTER=weights.by_pointer,
        HAS_BIAS=combination.bias is not None,
        PLAUSIBLE=plausible,
        WHOLE=whole,
        PARTS=launch.round_up(parts),
        **constants,
    )
