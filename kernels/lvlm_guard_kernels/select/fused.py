"""`select` in Triton: slice maxima of main, a list of the survivors of each row, then one program per row that draws.

The list may take in the whole vocabulary, so nothing overflows: up to `TILE` survivors are read again from cache, more
of them cost a pass over the list for every few bits of a threshold.
"""

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
from lvlm_guard_kernels.combine.fused import SLOTS, best_of_slice, combined, eligible_at, packed_weights, slotted
from lvlm_guard_kernels.combine.reference import DEMOTION
from lvlm_guard_kernels.select import noise, reference
from lvlm_guard_kernels.select.draw import Draw

TILE = 1024
"""Listed tokens that a program looks at together."""
PIVOTS = 8
"""Thresholds that a pass over the list tries together."""
WARPS = 16

View = tuple[Tensor, int, int]
"""Logits with the strides of rows and positions."""

_DEMOTION = tl.constexpr(DEMOTION)
_UNIT = tl.constexpr(reference.UNIT)
_LEAST = tl.constexpr(noise.LEAST)
_MOST = tl.constexpr(noise.MOST)
_UNDER_ALL = tl.constexpr(-(2**31))


@triton.jit
def open_rows(
    main, main_outer, main_inner, keep, keep_outer, keep_inner, best, counts, vocabulary,
    HAS_KEEP: tl.constexpr, PLAUSIBLE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Best eligible logit of each slice into `best` `[rows, slices]`, zeros into `counts` `[rows, 2]`."""
    if PLAUSIBLE:
        best_of_slice(
            main, main_outer, main_inner, keep, keep_outer, keep_inner, best, 1, vocabulary, HAS_KEEP, WIDTH
        )  # fmt: skip
    if tl.program_id(1) == 0:
        tl.store(counts + tl.program_id(0) * 2 + tl.arange(0, 2), tl.zeros([2], tl.int32))


@triton.jit
def _append(tokens, scores, count, token, score, alive):
    """Write the living of a block behind `count` entries of a list."""
    slot = count + tl.cumsum(alive.to(tl.int32), axis=0) - 1
    tl.store(tokens + slot, token, mask=alive)
    tl.store(scores + slot, score, mask=alive)


@triton.jit
def _weights_of(weights, SOURCES: tl.constexpr):
    """Weights of main and of each source in one row."""
    main_weight = tl.load(weights)
    weight0 = tl.load(weights + 1, mask=SOURCES > 0, other=0.0)
    weight1 = tl.load(weights + 2, mask=SOURCES > 1, other=0.0)
    weight2 = tl.load(weights + 3, mask=SOURCES > 2, other=0.0)
    weight3 = tl.load(weights + 4, mask=SOURCES > 3, other=0.0)
    return main_weight, weight0, weight1, weight2, weight3


@triton.jit
def list_survivors(
    main, main_outer, source0, outer0, source1, outer1, source2, outer2, source3, outer3,
    weights, main_weight, weight0, weight1, weight2, weight3, bias, bias_outer, keep, keep_outer,
    best, log_beta, counts, tokens, scores, vocabulary,
    SOURCES: tl.constexpr, PER_ROW: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_KEEP: tl.constexpr,
    PLAUSIBLE: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Append the survivors of one slice of one row to its list, in no order; count them, and slices that hold NaN."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    main += row * main_outer
    keep += row * keep_outer
    counts += row * 2
    top = 0.0
    hopeful = True
    if PLAUSIBLE:
        slices = tl.arange(0, PARTS)
        bests = tl.load(best + row * tl.num_programs(1) + slices, mask=slices < tl.num_programs(1), other=-float("inf"))
        damaged = tl.max((bests != bests).to(tl.int32), axis=0)
        top = tl.max(tl.where(bests == bests, bests, -float("inf")), axis=0)
        top = tl.where(damaged > 0, float("nan"), top)
        hopeful = (tl.load(best + row * tl.num_programs(1) + part) >= top + log_beta) | (damaged > 0)
    if hopeful:
        if PER_ROW:
            main_weight, weight0, weight1, weight2, weight3 = _weights_of(weights + row * (SOURCES + 1), SOURCES)
        token = part * WIDTH + tl.arange(0, WIDTH)
        total = combined(
            main, source0 + row * outer0, source1 + row * outer1, source2 + row * outer2, source3 + row * outer3,
            main_weight, weight0, weight1, weight2, weight3, bias + row * bias_outer, keep, top, log_beta,
            token, vocabulary, SOURCES, HAS_BIAS, HAS_KEEP, PLAUSIBLE,
        )  # fmt: skip
        alive = total > -float("inf")
        if PLAUSIBLE:
            _, eligible = eligible_at(main, keep, token, vocabulary, HAS_KEEP)
            alive = alive & (eligible >= top + log_beta)
        found = tl.sum(alive.to(tl.int32), axis=0)
        if found > 0:
            before = tl.atomic_add(counts, found)
            _append(tokens + row * vocabulary, scores + row * vocabulary, before, token, total, alive)
        if tl.max((total != total).to(tl.int32), axis=0) > 0:
            tl.store(counts + 1, 1)


@triton.jit
def _list_demoted(main, keep, tokens, scores, log_beta, vocabulary, HAS_KEEP: tl.constexpr, TILE: tl.constexpr):
    """List every implausible token of a row with its demoted logit; how many they are."""
    top = -float("inf")
    for start in range(0, vocabulary, TILE):
        _, eligible = eligible_at(main, keep, start + tl.arange(0, TILE), vocabulary, HAS_KEEP)
        top = tl.maximum(top, tl.max(eligible, axis=0))
    count = 0
    for start in range(0, vocabulary, TILE):
        token = start + tl.arange(0, TILE)
        _, eligible = eligible_at(main, keep, token, vocabulary, HAS_KEEP)
        score = eligible - _DEMOTION
        alive = (score > -float("inf")) & (eligible < top + log_beta)
        _append(tokens, scores, count, token, score, alive)
        count += tl.sum(alive.to(tl.int32), axis=0)
    return count


@triton.jit
def _entries(tokens, scores, start, count, temperature, GREEDY: tl.constexpr, TILE: tl.constexpr):
    """Some entries of a list: ids, scores over the temperature, and which of them are there."""
    slot = start + tl.arange(0, TILE)
    listed = slot < count
    token = tl.load(tokens + slot, mask=listed, other=0)
    scaled = tl.load(scores + slot, mask=listed, other=-float("inf"))
    if not GREEDY:
        scaled = tl.div_rn(scaled, temperature)
    return token, tl.where(scaled == 0.0, 0.0, scaled), listed


@triton.jit
def _best(tokens, scores, count, temperature, GREEDY: tl.constexpr, TILE: tl.constexpr):
    """Best of a list."""
    best = -float("inf")
    for start in range(0, count, TILE):
        _, scaled, _ = _entries(tokens, scores, start, count, temperature, GREEDY, TILE)
        best = tl.maximum(best, tl.max(scaled, axis=0))
    return best


@triton.jit
def _key(scaled):
    """A whole number in the order of fp32 numbers; -0 must have been replaced."""
    bits = scaled.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _gap(scaled, best):
    """How far below the best, which may be infinite."""
    under = tl.where(scaled == best, 0.0, scaled)
    return tl.where(scaled == best, 0.0, under - best)


@triton.jit
def _mass(scaled, best):
    """Probability as a whole number, `UNIT` for the best."""
    return (tl.exp(_gap(scaled, best)) * _UNIT).to(tl.int64)


@triton.jit
def _last(
    tokens, scores, count, temperature, best, low, high, bound, floor,
    OF: tl.constexpr, TILE: tl.constexpr, PIVOTS: tl.constexpr,
):  # fmt: skip
    """Largest number from `low` to `high` with entries of at most `bound` under it, and what is under it.

    Of "key", entries are counted by key; of "mass", weighed by key, from `floor` on; of "token", those of key `floor`
    are weighed by id, the highest first.
    """
    under = bound * 0
    while low < high:
        stride = (high - low + PIVOTS - 1) // PIVOTS
        pivots = tl.minimum(low + stride * (tl.arange(0, PIVOTS) + 1), high)
        edges = pivots.to(tl.int32)
        sums = tl.zeros([PIVOTS], tl.int64)
        for start in range(0, count, TILE):
            token, scaled, listed = _entries(tokens, scores, start, count, temperature, GREEDY=False, TILE=TILE)
            key = _key(scaled)
            field = key
            if OF == "key":
                weight = listed.to(tl.int64)
            elif OF == "mass":
                weight = tl.where(listed & (key >= floor), _mass(scaled, best), 0)
            else:
                field = -token
                weight = tl.where(listed & (key == floor), _mass(scaled, best), 0)
            sums += tl.sum(tl.where(field[:, None] < edges[None, :], weight[:, None], 0), axis=0)
        within = sums <= bound
        under = tl.maximum(under, tl.max(tl.where(within, sums, 0), axis=0))
        low = tl.maximum(low, tl.max(tl.where(within, pivots, low), axis=0))
        high = tl.minimum(high, tl.min(tl.where(within, high, pivots - 1), axis=0))
    return low, under


@triton.jit
def _nucleus(
    tokens, scores, count, vocabulary, temperature, best, floor, rest, TILE: tl.constexpr, PIVOTS: tl.constexpr
):
    """Top-p above a floor: the least key that stays, and of the tokens with this key the last that stays."""
    total = floor * 0
    for start in range(0, count, TILE):
        _, scaled, listed = _entries(tokens, scores, start, count, temperature, GREEDY=False, TILE=TILE)
        total += tl.sum(tl.where(listed & (_key(scaled) >= floor), _mass(scaled, best), 0), axis=0)
    limit = (total.to(tl.float64) * rest).to(tl.int64)
    high = _key(best).to(tl.int64)
    cut, under = _last(
        tokens, scores, count, temperature, best, floor, high, limit, floor, "mass", TILE, PIVOTS
    )  # fmt: skip
    bits = cut.to(tl.int32)
    each = _mass((bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True), best)
    left = limit - under
    if cut == high:
        left = tl.minimum(left, total - under - each)
    last = floor * 0 + vocabulary
    if left >= each:
        last, _ = _last(
            tokens, scores, count, temperature, best, 1 - last, last * 0, left, cut, "token", TILE, PIVOTS
        )  # fmt: skip
        last = -last
    return cut, last


@triton.jit
def _standard(word):
    """As `noise.standard`; the quotient makes up for what is rounded off in `1 - uniform`."""
    uniform = tl.minimum(tl.maximum(tl.uint_to_uniform_float(word), _LEAST), _MOST)
    other = 1.0 - uniform
    lost = tl.where(other == 1.0, 1.0, 1.0 - other)
    waiting = tl.where(other == 1.0, uniform, -tl.log(other) * tl.div_rn(uniform, lost))
    return -tl.log(waiting)


@triton.jit
def _gumbel(seed, step, name, token):
    """As `noise.gumbel`."""
    name = tl.zeros(token.shape, tl.int64) + name
    step = (tl.zeros(token.shape, tl.int64) + step).to(tl.uint32)
    word, _, _, _ = tl.philox(seed, token.to(tl.uint32), step, name.to(tl.uint32), (name >> 32).to(tl.uint32))
    return _standard(word)


@triton.jit
def _winner(
    tokens, scores, count, vocabulary, temperature, best, floor, last, name, seed, step,
    GREEDY: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Best token, with noise unless greedy, of those above key `floor`, or at it and up to `last`."""
    highest = -float("inf")
    winner = vocabulary
    for start in range(0, count, TILE):
        token, scaled, stays = _entries(tokens, scores, start, count, temperature, GREEDY, TILE)
        value = scaled
        if not GREEDY:
            key = _key(scaled).to(tl.int64)
            stays = stays & ((key > floor) | ((key == floor) & (token <= last)))
            value = _gap(scaled, best) + _gumbel(seed, step, name, token)
        value = tl.where(stays, value, -float("inf"))
        top = tl.max(value, axis=0)
        lowest = tl.min(tl.where(stays & (value == top), token, vocabulary), axis=0)
        if (top > highest) | ((top == highest) & (lowest < winner)):
            highest = top
            winner = lowest
    return winner


@triton.jit(do_not_specialize=["top_k", "seed", "step"])
def draw_tokens(
    counts, tokens, scores, names, main, main_outer, keep, keep_outer, ids, broken,
    log_beta, vocabulary, temperature, top_k, rest, seed, step,
    GREEDY: tl.constexpr, TOP_K: tl.constexpr, TOP_P: tl.constexpr, NAMED: tl.constexpr, PLAUSIBLE: tl.constexpr,
    HAS_KEEP: tl.constexpr, TILE: tl.constexpr, PIVOTS: tl.constexpr,
):  # fmt: skip
    """Draw one row's token from its list; if that is empty, from the demoted."""
    row = tl.program_id(0).to(tl.int64)
    tokens += row * vocabulary
    scores += row * vocabulary
    count = tl.load(counts + row * 2)
    damaged = tl.load(counts + row * 2 + 1)
    if PLAUSIBLE:  # noqa: SIM102 - decided when compiling
        if (count == 0) & (damaged == 0):
            count = _list_demoted(
                main + row * main_outer, keep + row * keep_outer, tokens, scores, log_beta, vocabulary, HAS_KEEP, TILE
            )  # fmt: skip
            tl.debug_barrier()
    if (count == 0) | (damaged > 0):
        tl.store(ids + row, -1)
        tl.store(broken + row, 1)
    else:
        name = row
        if NAMED:
            name = tl.load(names + row)
        best = _best(tokens, scores, count, temperature, GREEDY, TILE)
        floor = row * 0 + _UNDER_ALL
        if TOP_K:  # noqa: SIM102 - decided when compiling
            if count > top_k:
                floor, _ = _last(
                    tokens, scores, count, temperature, best, floor, _key(best).to(tl.int64),
                    floor * 0 + count - top_k, floor, "key", TILE, PIVOTS,
                )  # fmt: skip
        last = row * 0 + vocabulary
        if TOP_P:
            floor, last = _nucleus(
                tokens, scores, count, vocabulary, temperature, best, floor, rest, TILE, PIVOTS
            )  # fmt: skip
        winner = _winner(
            tokens, scores, count, vocabulary, temperature, best, floor, last, name, seed, step, GREEDY, TILE
        )  # fmt: skip
        tl.store(ids + row, winner.to(tl.int64))
        tl.store(broken + row, 0)


def select(
    main: Tensor,
    sources: Sequence[Tensor],
    weights: Sequence[float | Tensor],
    draw: Draw,
    *,
    main_weight: float | Tensor,
    beta: float,
    bias: Tensor | None,
    keep: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """As `lvlm_guard_kernels.select.reference.select`."""
    rows, _, vocabulary = main.shape
    ids = torch.empty(rows, dtype=torch.int64, device=main.device)
    broken = torch.empty(rows, dtype=torch.uint8, device=main.device)
    if rows == 0:
        return ids, broken.bool()
    view = launching.strided(main)
    kept = view if keep is None else launching.strided(keep.view(torch.uint8).expand(main.shape))
    settings = {"HAS_KEEP": keep is not None, "PLAUSIBLE": beta > 0.0, "enable_fp_fusion": False}
    own = view, kept, math.log(beta) if beta > 0.0 else 0.0
    with launching.on_device(main):
        draw_tokens[rows,](
            *_listed(own, *slotted(sources, weights), main_weight, bias, settings),
            ids if draw.rows is None else draw.rows.contiguous(),
            *view[:2],
            *kept[:2],
            ids,
            broken,
            own[-1],
            vocabulary,
            draw.temperature,
            draw.top_k,
            draw.rest,
            draw.seed,
            draw.step & noise.WORD,
            GREEDY=draw.greedy,
            TOP_K=draw.top_k > 0 and not draw.greedy,
            TOP_P=draw.top_p < 1.0 and not draw.greedy,
            NAMED=draw.rows is not None,
            TILE=TILE,
            PIVOTS=PIVOTS,
            num_warps=WARPS,
            **settings,
        )
    return ids, broken.bool()


def _listed(
    own: tuple[View, View, float],
    sources: Sequence[Tensor],
    weights: Sequence[float | Tensor],
    main_weight: float | Tensor,
    bias: Tensor | None,
    settings: dict[str, bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """How many survive in each row and whether NaN does `[rows, 2]`; their ids and logits `[rows, vocab]`."""
    view, kept, log_beta = own
    main = view[0]
    rows, _, vocabulary = main.shape
    wide = launching.width(rows)
    parts = triton.cdiv(vocabulary, wide)
    counts = torch.empty((rows, 2), dtype=torch.int32, device=main.device)
    tokens = torch.empty((rows, vocabulary), dtype=torch.int32, device=main.device)
    scores = torch.empty((rows, vocabulary), dtype=torch.float32, device=main.device)
    best = torch.empty((rows, parts), dtype=torch.float32, device=main.device)
    launch: dict[str, Any] = {"WIDTH": wide, "num_warps": launching.warps(wide), **settings}
    open_rows[rows, parts](*view, *kept, best, counts, vocabulary, **launch)
    per_row = any(isinstance(weight, Tensor) for weight in (main_weight, *weights))
    numbers = [1.0] * (SLOTS + 1) if per_row else [float(one) for one in (main_weight, *weights)]
    list_survivors[rows, parts](
        *view[:2],
        *chain.from_iterable(launching.strided(one)[:2] for one in [*sources, *[main] * (SLOTS - len(sources))]),
        packed_weights((main_weight, *weights), main) if per_row else scores,
        *numbers,
        *[0.0] * (SLOTS + 1 - len(numbers)),
        *(view if bias is None else launching.strided(bias.expand(main.shape)))[:2],
        *kept[:2],
        best,
        log_beta,
        counts,
        tokens,
        scores,
        vocabulary,
        SOURCES=len(sources),
        PER_ROW=per_row,
        HAS_BIAS=bias is not None,
        PARTS=triton.next_power_of_2(parts),
        **launch,
    )
    return counts, tokens, scores
