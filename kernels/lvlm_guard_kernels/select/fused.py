"""`select` in Triton: slice maxima of main, a list of the survivors of each row, then one program per row that draws.

The list has room for the whole vocabulary, so it cannot overflow: up to `TILE` survivors are read again from cache; with
more, every few bits of a threshold cost a pass over the list.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lvlm_guard_kernels import launch
from lvlm_guard_kernels.combination import Combination
from lvlm_guard_kernels.combine.fused import (
    Slots,
    Views,
    combine_tokens,
    find_slice_best,
    fit_into_slots,
    load_eligible,
    load_weight,
    view_parts,
    view_weights,
)
from lvlm_guard_kernels.combine.reference import DEMOTION
from lvlm_guard_kernels.select import noise, reference
from lvlm_guard_kernels.select.bounds import Bound, find_bound
from lvlm_guard_kernels.select.draw import Draw

TILE = 1024
"""Listed tokens that a program examines together."""
PIVOTS = 8
"""Thresholds that a pass over the list tries together."""
WARPS = 16
NO_BOUND = 0.0, 0.0

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
    """Store the best eligible logit of each slice in `best` `[rows, slices]`, and zeros in `counts` `[rows, 2]`."""
    if PLAUSIBLE:
        find_slice_best(
            main, main_outer, main_inner, keep, keep_outer, keep_inner, best, 1, vocabulary, HAS_KEEP, WIDTH
        )  # fmt: skip
    if tl.program_id(1) == 0:
        tl.store(counts + tl.program_id(0) * 2 + tl.arange(0, 2), tl.zeros([2], tl.int32))


@triton.jit
def _append(tokens, scores, count, token, score, alive):
    """Write the tokens of a block that are alive after the first `count` entries of a list."""
    slot = count + tl.cumsum(alive.to(tl.int32), axis=0) - 1
    tl.store(tokens + slot, token, mask=alive)
    tl.store(scores + slot, score, mask=alive)


@triton.jit
def list_survivors(
    main, main_outer, source0, outer0, source1, outer1, source2, outer2, source3, outer3,
    main_weight, main_weight_outer, weight0, weight_outer0, weight1, weight_outer1, weight2, weight_outer2,
    weight3, weight_outer3, bias, bias_outer, keep, keep_outer,
    best, reach, slack, counts, tokens, scores, vocabulary,
    SOURCES: tl.constexpr, HAS_BASE: tl.constexpr, BY_POINTER: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_KEEP: tl.constexpr, PLAUSIBLE: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Append the survivors of one slice of one row to its list, in no order; count them, and note whether NaN occurs.

    They lie at most `-reach`, and `slack` times the size of the best logit, below the best.
    """
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    main += row * main_outer
    keep += row * keep_outer
    counts += row * 2
    top = 0.0
    may_survive = True
    if PLAUSIBLE:
        slices = tl.arange(0, PARTS)
        bests = tl.load(best + row * tl.num_programs(1) + slices, mask=slices < tl.num_programs(1), other=-float("inf"))
        has_nan = tl.max((bests != bests).to(tl.int32), axis=0)
        top = tl.max(tl.where(bests == bests, bests, -float("inf")), axis=0)
        reach -= slack * tl.where(tl.abs(top) < float("inf"), tl.abs(top), 0.0)
        top = tl.where(has_nan > 0, float("nan"), top)
        may_survive = (tl.load(best + row * tl.num_programs(1) + part) >= top + reach) | (has_nan > 0)
    if may_survive:
        token = part * WIDTH + tl.arange(0, WIDTH)
        total = combine_tokens(
            main, source0 + row * outer0, source1 + row * outer1, source2 + row * outer2, source3 + row * outer3,
            load_weight(main_weight, row * main_weight_outer, 0, BY_POINTER & 1),
            load_weight(weight0, row * weight_outer0, 0, BY_POINTER & 2),
            load_weight(weight1, row * weight_outer1, 0, BY_POINTER & 4),
            load_weight(weight2, row * weight_outer2, 0, BY_POINTER & 8),
            load_weight(weight3, row * weight_outer3, 0, BY_POINTER & 16),
            bias + row * bias_outer, keep, top, reach, token, vocabulary,
            SOURCES, HAS_BASE, HAS_BIAS, HAS_KEEP, PLAUSIBLE,
        )  # fmt: skip
        alive = total > -float("inf")
        if PLAUSIBLE:
            _, eligible = load_eligible(main, keep, token, vocabulary, HAS_KEEP)
            alive = alive & (eligible >= top + reach)
        survivors = tl.sum(alive.to(tl.int32), axis=0)
        if survivors > 0:
            count = tl.atomic_add(counts, survivors)
            _append(tokens + row * vocabulary, scores + row * vocabulary, count, token, total, alive)
        if tl.max((total != total).to(tl.int32), axis=0) > 0:
            tl.store(counts + 1, 1)


@triton.jit
def _list_demoted(main, keep, tokens, scores, log_beta, vocabulary, HAS_KEEP: tl.constexpr, TILE: tl.constexpr):
    """List every implausible token of a row with its demoted logit, and return how many there are."""
    top = -float("inf")
    for start in range(0, vocabulary, TILE):
        _, eligible = load_eligible(main, keep, start + tl.arange(0, TILE), vocabulary, HAS_KEEP)
        top = tl.maximum(top, tl.max(eligible, axis=0))
    count = 0
    for start in range(0, vocabulary, TILE):
        token = start + tl.arange(0, TILE)
        _, eligible = load_eligible(main, keep, token, vocabulary, HAS_KEEP)
        score = eligible - _DEMOTION
        alive = (score > -float("inf")) & (eligible < top + log_beta)
        _append(tokens, scores, count, token, score, alive)
        count += tl.sum(alive.to(tl.int32), axis=0)
    return count


@triton.jit
def _load_entries(tokens, scores, start, count, temperature, GREEDY: tl.constexpr, TILE: tl.constexpr):
    """Return a tile of a list: ids, scores over the temperature, and which entries exist."""
    slot = start + tl.arange(0, TILE)
    listed = slot < count
    token = tl.load(tokens + slot, mask=listed, other=0)
    scaled = tl.load(scores + slot, mask=listed, other=-float("inf"))
    if not GREEDY:
        scaled = tl.div_rn(scaled, temperature)
    # -0 becomes 0, since `_order` would put it below.
    return token, tl.where(scaled == 0.0, 0.0, scaled), listed


@triton.jit
def _find_best(tokens, scores, count, temperature, GREEDY: tl.constexpr, TILE: tl.constexpr):
    """Return the best score of a list."""
    bests = tl.full([TILE], -float("inf"), tl.float32)
    for start in range(0, count, TILE):
        _, scaled, _ = _load_entries(tokens, scores, start, count, temperature, GREEDY, TILE)
        bests = tl.maximum(bests, scaled)
    return tl.max(bests, axis=0)


@triton.jit
def _order(scaled):
    """Return whole numbers that are ordered like fp32 numbers; -0 must have been replaced."""
    # Bits of negative floats count upwards as values fall; flipping all but the sign turns them round.
    bits = scaled.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _subtract_best(scaled, best):
    """Return scores relative to the best, which may be infinite: 0 there, since `inf - inf` is NaN."""
    finite = tl.where(scaled == best, 0.0, scaled)
    return tl.where(scaled == best, 0.0, finite - best)


@triton.jit
def _weigh(scaled, best):
    """Return probabilities as whole numbers, `UNIT` for the best, whose sums are exact in any order."""
    return (tl.exp(_subtract_best(scaled, best)) * _UNIT).to(tl.int64)


@triton.jit
def _search(
    tokens, scores, count, temperature, best, low, high, bound, floor,
    OF: tl.constexpr, TILE: tl.constexpr, PIVOTS: tl.constexpr,
):  # fmt: skip
    """Return the largest number from `low` to `high` with at most `bound` below it, and the amount below it.

    With "key", entries are counted by key; with "mass", those of key `floor` or above are weighed by key; with "token",
    those of key `floor` are weighed by id, the highest first.
    """
    # Every pass tries PIVOTS thresholds and keeps the interval between two of them: no sort, and any order of entries.
    below = bound * 0
    while low < high:
        stride = (high - low + PIVOTS - 1) // PIVOTS
        pivots = tl.minimum(low + stride * (tl.arange(0, PIVOTS) + 1), high)
        edges = pivots.to(tl.int32)
        weights = tl.zeros([TILE, PIVOTS], tl.int64)  # of each lane: what they come to is asked once a pass
        for start in range(0, count, TILE):
            token, scaled, listed = _load_entries(tokens, scores, start, count, temperature, GREEDY=False, TILE=TILE)
            key = _order(scaled)
            field = key
            if OF == "key":
                weight = listed.to(tl.int64)
            elif OF == "mass":
                weight = tl.where(listed & (key >= floor), _weigh(scaled, best), 0)
            else:
                field = -token
                weight = tl.where(listed & (key == floor), _weigh(scaled, best), 0)
            weights += tl.where(field[:, None] < edges[None, :], weight[:, None], 0)
        sums = tl.sum(weights, axis=0)
        fits = sums <= bound
        below = tl.maximum(below, tl.max(tl.where(fits, sums, 0), axis=0))
        low = tl.maximum(low, tl.max(tl.where(fits, pivots, low), axis=0))
        high = tl.minimum(high, tl.min(tl.where(fits, high, pivots - 1), axis=0))
    return low, below


@triton.jit
def _apply_top_p(
    tokens,
    scores,
    count,
    vocabulary,
    temperature,
    best,
    floor,
    removable_share,
    TILE: tl.constexpr,
    PIVOTS: tl.constexpr,
):
    """Return the least key that stays under top-p above a floor, and the last token of this key that stays."""
    masses = tl.zeros([TILE], tl.int64)
    for start in range(0, count, TILE):
        _, scaled, listed = _load_entries(tokens, scores, start, count, temperature, GREEDY=False, TILE=TILE)
        masses += tl.where(listed & (_order(scaled) >= floor), _weigh(scaled, best), 0)
    total = tl.sum(masses, axis=0)
    limit = (total.to(tl.float64) * removable_share).to(tl.int64)
    high = _order(best).to(tl.int64)
    cut, below = _search(
        tokens, scores, count, temperature, best, floor, high, limit, floor, "mass", TILE, PIVOTS
    )  # fmt: skip
    bits = cut.to(tl.int32)
    mass = _weigh((bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True), best)
    # Tokens at the cut weigh the same: whole ones go as long as the limit allows, but the best token always stays.
    budget = limit - below
    if cut == high:
        budget = tl.minimum(budget, total - below - mass)
    last = floor * 0 + vocabulary
    if budget >= mass:
        last, _ = _search(
            tokens, scores, count, temperature, best, 1 - last, last * 0, budget, cut, "token", TILE, PIVOTS
        )  # fmt: skip
        last = -last
    return cut, last


@triton.jit
def _convert_to_gumbel(word):
    """Return words as Gumbel noise, like `noise.convert_to_gumbel`."""
    # Triton has no log1p: log(1 - x) is taken of the rounded 1 - x, and the quotient undoes that rounding.
    uniform = tl.minimum(tl.maximum(tl.uint_to_uniform_float(word), _LEAST), _MOST)
    complement = 1.0 - uniform
    rounded = tl.where(complement == 1.0, 1.0, 1.0 - complement)
    waiting = tl.where(complement == 1.0, uniform, -tl.log(complement) * tl.div_rn(uniform, rounded))
    return -tl.log(waiting)


@triton.jit
def _draw_gumbel(seed, step, row_id, token):
    """Return Gumbel noise of tokens of one row, like `noise.gumbel`."""
    row_id = tl.zeros(token.shape, tl.int64) + row_id
    step = (tl.zeros(token.shape, tl.int64) + step).to(tl.uint32)
    word, _, _, _ = tl.philox(seed, token.to(tl.uint32), step, row_id.to(tl.uint32), (row_id >> 32).to(tl.uint32))
    return _convert_to_gumbel(word)


@triton.jit
def _find_winner(
    tokens, scores, count, vocabulary, temperature, best, floor, last, row_id, seed, step,
    GREEDY: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Return the best token, with noise unless greedy, of those above key `floor`, or at it and up to `last`."""
    highest = tl.full([TILE], -float("inf"), tl.float32)
    winners = tl.zeros([TILE], tl.int32) + vocabulary
    for start in range(0, count, TILE):
        token, scaled, stays = _load_entries(tokens, scores, start, count, temperature, GREEDY, TILE)
        value = scaled
        if not GREEDY:
            key = _order(scaled).to(tl.int64)
            stays = stays & ((key > floor) | ((key == floor) & (token <= last)))
            value = _subtract_best(scaled, best) + _draw_gumbel(seed, step, row_id, token)
        value = tl.where(stays, value, -float("inf"))
        token = tl.where(stays, token, vocabulary)
        wins = (value > highest) | ((value == highest) & (token < winners))
        highest = tl.where(wins, value, highest)
        winners = tl.where(wins, token, winners)
    return tl.min(tl.where(highest == tl.max(highest, axis=0), winners, vocabulary), axis=0)


@triton.jit(do_not_specialize=["top_k", "seed", "step"])
def draw_tokens(
    counts, tokens, scores, row_ids, main, main_outer, keep, keep_outer, ids, broken, step_pointer,
    log_beta, vocabulary, temperature, removable_share, top_k, seed, step,
    GREEDY: tl.constexpr, TOP_K: tl.constexpr, TOP_P: tl.constexpr, HAS_IDS: tl.constexpr, HAS_STEP: tl.constexpr,
    DEMOTED: tl.constexpr, HAS_KEEP: tl.constexpr, TILE: tl.constexpr, PIVOTS: tl.constexpr,
):  # fmt: skip
    """Draw one row's token from its list, or from the demoted tokens where the list is empty."""
    row = tl.program_id(0).to(tl.int64)
    tokens += row * vocabulary
    scores += row * vocabulary
    count = tl.load(counts + row * 2)
    has_nan = tl.load(counts + row * 2 + 1)
    if DEMOTED:  # noqa: SIM102 - decided when compiling
        if (count == 0) & (has_nan == 0):
            count = _list_demoted(
                main + row * main_outer, keep + row * keep_outer, tokens, scores, log_beta, vocabulary, HAS_KEEP, TILE
            )  # fmt: skip
            tl.debug_barrier()
    if (count == 0) | (has_nan > 0):
        tl.store(ids + row, -1)
        tl.store(broken + row, 1)
    else:
        row_id = row
        if HAS_IDS:
            row_id = tl.load(row_ids + row)
        number = row * 0 + step
        if HAS_STEP:
            number = tl.load(step_pointer).to(tl.int64)
        best = _find_best(tokens, scores, count, temperature, GREEDY, TILE)
        floor = row * 0 + _UNDER_ALL
        if TOP_K:  # noqa: SIM102 - decided when compiling
            if count > top_k:
                floor, _ = _search(
                    tokens, scores, count, temperature, best, floor, _order(best).to(tl.int64),
                    floor * 0 + count - top_k, floor, "key", TILE, PIVOTS,
                )  # fmt: skip
        last = row * 0 + vocabulary
        if TOP_P:
            floor, last = _apply_top_p(
                tokens, scores, count, vocabulary, temperature, best, floor, removable_share, TILE, PIVOTS
            )  # fmt: skip
        winner = _find_winner(
            tokens, scores, count, vocabulary, temperature, best, floor, last, row_id, seed, number, GREEDY, TILE
        )  # fmt: skip
        tl.store(ids + row, winner.to(tl.int64))
        tl.store(broken + row, 0)


def select(combination: Combination, draw: Draw) -> tuple[Tensor, Tensor]:
    """Run `lvlm_guard_kernels.select.reference.select`."""
    main = combination.main
    ids = torch.empty(len(main), dtype=torch.int64, device=main.device)
    broken = torch.empty(len(main), dtype=torch.bool, device=main.device)
    if len(main):
        with launch.use_device(main):
            _launch(combination, draw, ids, broken)
    return ids, broken


def _launch(combination: Combination, draw: Draw, ids: Tensor, broken: Tensor) -> None:
    """List survivors, then draw the `ids` `[rows]`."""
    slots = fit_into_slots(combination)
    rows, _, vocabulary = combination.main.shape
    views = view_parts(slots.combination)
    step, number = (draw.step, 0) if isinstance(draw.step, Tensor) else (None, draw.step & noise.WORD)
    launch.run(
        draw_tokens,
        (rows,),
        (
            *_list_survivors(slots, views, find_bound(combination, draw)),
            ids if draw.rows is None else draw.rows.contiguous(),
            *views.main[:2],
            *views.keep[:2],
            ids,
            broken.view(torch.uint8),
            ids if step is None else step,
            combination.log_beta,
            vocabulary,
            draw.temperature,
            draw.removable_share,
        ),
        varying=(min(draw.top_k, vocabulary), draw.signed_seed, number),
        GREEDY=draw.greedy,
        TOP_K=draw.top_k > 0 and not draw.greedy,
        TOP_P=draw.top_p < 1.0 and not draw.greedy,
        HAS_IDS=draw.rows is not None,
        HAS_STEP=step is not None,
        DEMOTED=combination.beta > 0.0,
        HAS_KEEP=combination.keep is not None,
        TILE=TILE,
        PIVOTS=PIVOTS,
        num_warps=WARPS,
        enable_fp_fusion=False,
    )


def _list_survivors(slots: Slots, views: Views, bound: Bound | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return how many survive in each row and whether NaN occurs `[rows, 2]`; their ids and logits `[rows, vocab]`."""
    main = slots.combination.main
    rows, _, vocabulary = main.shape
    width = launch.choose_width(rows)
    parts = launch.count_parts(vocabulary, width)
    counts = torch.empty((rows, 2), dtype=torch.int32, device=main.device)
    tokens = torch.empty((rows, vocabulary), dtype=torch.int32, device=main.device)
    scores = torch.empty((rows, vocabulary), dtype=torch.float32, device=main.device)
    best = torch.empty((rows, parts), dtype=torch.float32, device=main.device)
    settings: dict[str, Any] = {
        "HAS_KEEP": slots.combination.keep is not None,
        "PLAUSIBLE": bound is not None,
        "WIDTH": width,
        "num_warps": launch.choose_warps(width),
        "enable_fp_fusion": False,
    }
    launch.run(open_rows, (rows, parts), (*views.main, *views.keep, best, counts, vocabulary), **settings)
    weights = view_weights(slots.combination)
    launch.run(
        list_survivors,
        (rows, parts),
        (
            *views.main[:2],
            *chain.from_iterable(source[:2] for source in views.sources),
            *chain.from_iterable(weight[:2] for weight in weights.views),
            *views.bias[:2],
            *views.keep[:2],
            best,
            *(bound or NO_BOUND),
            counts,
            tokens,
            scores,
            vocabulary,
        ),
        SOURCES=len(slots.combination.sources),
        HAS_BASE=slots.has_base,
        BY_POINTER=weights.by_pointer,
        HAS_BIAS=slots.combination.bias is not None,
        PARTS=launch.round_up(parts),
        **settings,
    )
    return counts, tokens, scores
