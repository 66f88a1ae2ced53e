"""`combine` in Triton: one read of main for the best token, one that combines; sources only where main survives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lvlm_guard_kernels import rows as launching
from lvlm_guard_kernels.combine.reference import DEMOTION, column

SLOTS = 4
"""Sources that one launch takes; further ones are added up before it."""

_DEMOTION = tl.constexpr(DEMOTION)


@triton.jit
def eligible_at(main, keep, token, vocabulary, HAS_KEEP: tl.constexpr):
    """Logits of main at some tokens, and the same with removed tokens at -inf."""
    inside = token < vocabulary
    logits = tl.load(main + token, mask=inside, other=-float("inf")).to(tl.float32)
    eligible = logits
    if HAS_KEEP:
        kept = tl.load(keep + token, mask=inside, other=0)
        eligible = tl.where(kept != 0, logits, -float("inf"))
    return logits, eligible


@triton.jit
def _weighted(weight, source, token, survives):
    return weight * tl.load(source + token, mask=survives, other=0.0).to(tl.float32)


@triton.jit
def combined(
    main, source0, source1, source2, source3, main_weight, weight0, weight1, weight2, weight3,
    bias, keep, top, log_beta, token, vocabulary,
    SOURCES: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_KEEP: tl.constexpr, PLAUSIBLE: tl.constexpr,
):  # fmt: skip
    """Combined logits of some tokens of one row; `top` is its best eligible logit, NaN if it holds one."""
    logits, eligible = eligible_at(main, keep, token, vocabulary, HAS_KEEP)
    survives = token < vocabulary
    if PLAUSIBLE:
        survives = (eligible != -float("inf")) & (eligible >= top + log_beta)
    total = logits * main_weight
    if SOURCES > 0:
        total += _weighted(weight0, source0, token, survives)
    if SOURCES > 1:
        total += _weighted(weight1, source1, token, survives)
    if SOURCES > 2:
        total += _weighted(weight2, source2, token, survives)
    if SOURCES > 3:
        total += _weighted(weight3, source3, token, survives)
    if HAS_BIAS:
        total += tl.load(bias + token, mask=survives, other=0.0).to(tl.float32)
    if PLAUSIBLE:
        total = tl.where(survives, total, eligible - _DEMOTION)
        total = tl.where(top == top, total, float("nan"))
    return tl.where(eligible == -float("inf"), eligible, total)


@triton.jit
def best_of_slice(
    main, main_outer, main_inner, keep, keep_outer, keep_inner, best, positions, vocabulary,
    HAS_KEEP: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Best eligible logit of one slice of one row, NaN if it holds one, into `best` `[rows, slices]`."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    outer, inner = row // positions, row % positions
    main += outer * main_outer + inner * main_inner
    keep += outer * keep_outer + inner * keep_inner
    _, eligible = eligible_at(main, keep, part * WIDTH + tl.arange(0, WIDTH), vocabulary, HAS_KEEP)
    broken = tl.max((eligible != eligible).to(tl.int32), axis=0)
    found = tl.max(tl.where(eligible == eligible, eligible, -float("inf")), axis=0)
    tl.store(best + row * tl.num_programs(1) + part, tl.where(broken > 0, float("nan"), found))


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
    """Combine one slice of a row, or a whole row; `best` holds the best logit of its slices, unless it is whole."""
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
        found = tl.full([WIDTH], -float("inf"), tl.float32)
        nans = tl.zeros([WIDTH], tl.int32)
        for start in range(0, vocabulary, WIDTH):
            _, eligible = eligible_at(main, keep, start + lane, vocabulary, HAS_KEEP)
            nans = nans | (eligible != eligible).to(tl.int32)
            found = tl.maximum(found, tl.where(eligible == eligible, eligible, -float("inf")))
        top = tl.where(tl.max(nans, axis=0) > 0, float("nan"), tl.max(found, axis=0))
        for start in range(0, vocabulary, WIDTH):
            token = start + lane
            total = combined(
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
            broken = tl.max((bests != bests).to(tl.int32), axis=0)
            top = tl.max(tl.where(bests == bests, bests, -float("inf")), axis=0)
            top = tl.where(broken > 0, float("nan"), top)
        token = part * WIDTH + lane
        total = combined(
            main, source0, source1, source2, source3, main_weight, weight0, weight1, weight2, weight3,
            bias, keep, top, log_beta, token, vocabulary, SOURCES, HAS_BIAS, HAS_KEEP, PLAUSIBLE,
        )  # fmt: skip
        tl.store(out + token, total, mask=token < vocabulary)


def combine(
    main: Tensor,
    sources: Sequence[Tensor] = (),
    weights: Sequence[float | Tensor] = (),
    *,
    main_weight: float | Tensor = 1.0,
    beta: float = 0.0,
    bias: Tensor | None = None,
    keep: Tensor | None = None,
) -> Tensor:
    """As `lvlm_guard_kernels.combine`."""
    out = torch.empty(main.shape, dtype=torch.float32, device=main.device)
    if out.numel() == 0:
        return out
    sources, weights = slotted(sources, weights)
    rows, vocabulary = main.shape[0] * main.shape[1], main.shape[2]
    whole = beta > 0.0 and launching.whole_rows(rows, main.device)
    wide = launching.width(rows)
    parts = 1 if whole else triton.cdiv(vocabulary, wide)
    viewed = launching.strided(main)
    kept = viewed if keep is None else launching.strided(keep.view(torch.uint8).expand(main.shape))
    shared: dict[str, Any] = {
        "HAS_KEEP": keep is not None,
        "WIDTH": wide,
        "num_warps": launching.warps(wide),
        "enable_fp_fusion": False,  # every sum is rounded as the reference rounds it
    }
    with launching.on_device(main):
        best = out
        if beta > 0.0 and not whole:
            best = torch.empty((rows, parts), dtype=torch.float32, device=main.device)
            best_of_slice[rows, parts](*viewed, *kept, best, main.shape[1], vocabulary, **shared)
        per_row = any(isinstance(weight, Tensor) for weight in (main_weight, *weights))
        row_weights = packed_weights((main_weight, *weights), main) if per_row else out
        numbers = [1.0] * (SLOTS + 1) if per_row else [float(one) for one in (main_weight, *weights)]
        combine_rows[rows, parts](
            *viewed,
            *chain.from_iterable([*map(launching.strided, sources), *[viewed] * (SLOTS - len(sources))]),
            row_weights,
            *numbers,
            *[0.0] * (SLOTS + 1 - len(numbers)),
            *(viewed if bias is None else launching.strided(bias.expand(main.shape))),
            *kept,
            best,
            math.log(beta) if beta > 0.0 else 0.0,
            out,
            main.shape[1],
            vocabulary,
            SOURCES=len(sources),
            PER_ROW=per_row,
            HAS_BIAS=bias is not None,
            PLAUSIBLE=beta > 0.0,
            WHOLE=whole,
            PARTS=triton.next_power_of_2(parts),
            **shared,
        )
    return out


def slotted(
    sources: Sequence[Tensor], weights: Sequence[float | Tensor]
) -> tuple[Sequence[Tensor], Sequence[float | Tensor]]:
    """At most `SLOTS` sources: the last one stands for all further ones."""
    if len(sources) <= SLOTS:
        return sources, weights
    rest = zip(sources[SLOTS - 1 :], weights[SLOTS - 1 :], strict=True)
    added = torch.stack([source.float() * column(weight) for source, weight in rest]).sum(0)
    return [*sources[: SLOTS - 1], added], [*weights[: SLOTS - 1], 1.0]


def packed_weights(weights: Sequence[float | Tensor], main: Tensor) -> Tensor:
    """All weights, `[rows * positions, weights]` in fp32 on the device."""
    shape = main.shape[:2]
    columns = [
        weight.to(torch.float32).expand(shape)
        if isinstance(weight, Tensor)
        else main.new_full(shape, weight, dtype=torch.float32)
        for weight in weights
    ]
    return torch.stack(columns, dim=-1).flatten(0, 1)
