"""Maps of occlusion judged by deletion, insertion, and by what becomes of them as weights are shuffled."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from doubt_words import PROMPT, RESAMPLES, SEED, DescribedScene
from PIL import Image
from scipy import stats
from torch import Tensor
from tqdm import tqdm

from lvlm_guard import Guard, anatomy
from lvlm_guard.diagnosis.answer import occlusion
from lvlm_guard.diagnosis.answer.forcing import AnswerRequest

CELLS, STEP = 6, 4
SHARES = {"last four layers shuffled": 4, "all layers shuffled": 8}
"""Layers of the decoder whose weights are shuffled, by what it is called."""


def cover(picture: Image.Image, cells: Sequence[int], *, keeps: bool) -> Image.Image:
    """Return a picture with some cells in its mean colour, or all others."""
    levels = np.asarray(picture)
    colour = levels.reshape(-1, 3).mean(0).round().astype(np.uint8)
    edited = np.broadcast_to(colour, levels.shape).copy() if keeps else levels.copy()
    rows, columns = (occlusion.cut_side(levels.shape[side], CELLS) for side in (0, 1))
    for cell in cells:
        (top, bottom), (left, right) = rows[cell // CELLS], columns[cell % CELLS]
        edited[top:bottom, left:right] = levels[top:bottom, left:right] if keeps else colour
    return Image.fromarray(edited)


def trace(
    request: AnswerRequest, ids: Sequence[int], span: tuple[int, int], order: Sequence[int], *, keeps: bool
) -> float:
    """Return the area under the probability of a word, as a share of that on the picture, as cells are covered or shown in an order."""
    picture = request.pictures[0]
    edits = [cover(picture, order[:number], keeps=keeps) for number in range(0, CELLS * CELLS + 1, STEP)]
    logs = torch.cat(
        [
            occlusion.compute_log_probabilities(request, [picture, *edits[start : start + 11]], ids[: span[1]])[
                :, span[0] :
            ].sum(1)
            for start in range(0, len(edits), 11)
        ]
    )
    chances = logs.exp()
    shares = chances[1:] / chances[0]
    return float(np.trapezoid(shares.tolist(), dx=1 / (len(shares) - 1)))


def map_word(request: AnswerRequest, ids: Sequence[int], span: tuple[int, int]) -> Tensor:
    """Return the occlusion map of one word `[cells]`."""
    return occlusion.occlude(request, ids, [span], CELLS, iter)[0]


def choose_objects(described: Sequence[DescribedScene], count: int) -> list[tuple[DescribedScene, Mapping[str, Any]]]:
    """Return the first object of each caption that is in its picture, one a picture."""
    chosen = []
    for each in described:
        words = [word for word in each.words if word["level"] == "object" and word["text"] in each.scene.present]
        chosen += [(each, words[0])] if words else []
    return chosen[:: max(len(chosen) // max(count, 1), 1)][:count]


def judge_maps(guard: Guard, described: Sequence[DescribedScene], count: int) -> list[dict[str, Any]]:
    """Return rows about occlusion maps: deletion, insertion, and rank correlation with maps of models whose weights are shuffled."""
    rng = np.random.default_rng(SEED)
    shuffled = {name: Guard(shuffle(guard.model, share), guard.processor, None) for name, share in SHARES.items()}
    figures: dict[str, list[float]] = {}
    for each, word in tqdm(choose_objects(described, count), "maps"):
        request = AnswerRequest(guard, (each.scene.picture,), PROMPT)
        ids = list(request.tokenizer(each.text, add_special_tokens=False)["input_ids"])
        span = (word["first_token"], word["first_token"] + word["tokens"])
        map_ = map_word(request, ids, span)
        by_map, by_chance = map_.argsort(descending=True).tolist(), rng.permutation(CELLS * CELLS).tolist()
        for name, keeps in (("deletion", False), ("insertion", True)):
            for way, order in (("by the map", by_map), ("in a random order", by_chance)):
                figures.setdefault(f"{name} {way}", []).append(trace(request, ids, span, order, keeps=keeps))
        for name, other_guard in shuffled.items():
            other_map = map_word(AnswerRequest(other_guard, request.pictures, PROMPT), ids, span)
            figures.setdefault(f"rank correlation, {name}", []).append(
                float(stats.spearmanr(map_, other_map).statistic)
            )
    for name in ("deletion", "insertion"):
        pairs_of = zip(figures[f"{name} by the map"], figures[f"{name} in a random order"], strict=True)
        figures[f"{name}, map minus random"] = [left - right for left, right in pairs_of]
    return [{"figure": name, "words": len(values), **average(values)} for name, values in figures.items()]


def average(values: Sequence[float]) -> dict[str, float]:
    """Return the mean, and the bounds of 95 % of means of resamples."""
    rng = np.random.default_rng(SEED)
    array = np.array(values)
    means = array[rng.integers(len(array), size=(RESAMPLES, len(array)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return {"mean": float(array.mean()), "low": float(low), "high": float(high)}


def shuffle(model: Any, count: int) -> Any:
    """Return a copy of a model whose last layers have their weights in a random order."""
    spoilt = copy.deepcopy(model)
    draw = torch.Generator().manual_seed(SEED)
    for layer in list(anatomy.decoder_layers(spoilt))[-count:]:
        for weight in layer.parameters():
            order = torch.randperm(weight.numel(), generator=draw)
            weight.data = weight.data.flatten()[order].reshape(weight.shape)
    return spoilt
