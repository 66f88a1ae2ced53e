"""Guarded generate on a GPU, on random weights in the shapes of public models, against plain generate and the floor."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lvlm_guard_search import OPERA
from measuring import Budget, Results, Row, copy_bandwidth, machine, versions
from shapes import LLAVA_7B, LLAVA_TINY, QWEN_7B, QWEN_TINY, Shape
from torch import Tensor
from variants import IN_PLACE, OUT_OF_MEMORY, OUT_OF_TIME, PLAIN, Race, Variant, guarded, in_place, inside

from lvlm_guard import Guard

COPIED = 2**30
SHOWN = (
    "model", "batch", "variant", "rounds", "decode_ms", "decode_ratio", "floor_ms", "decode_over_floor", "prefill_ms",
    "prefill_ratio", "peak_memory_gib", "status",
)  # fmt: skip
NOTES = (
    (
        "Times are medians over interleaved rounds with the 20th and 80th percentile, from CUDA events on a GPU; decode is "
        "per token after the first, and includes joining the caches; prefill runs from the call to the first token."
    ),
    "Ratios are to plain generate in the same round.",
    (
        "The floor is arithmetic on a measurement: bytes a decode step must read (weights of the decoder and the head once "
        "per forward, keys and values of every row at its unpadded length half way) over the copy bandwidth measured here."
    ),
    (
        "The search is OPERA's, 5 beams of 5 candidates without returns: 25 rows where plain has one. It is the only one "
        "whose own loop takes as many steps as plain generate; what ranks sentences depends on where they end."
    ),
    "Weights are random, so what is generated means nothing; speed does not depend on it.",
)
SEARCH = "search (opera)"


@dataclass(frozen=True)
class Plan:
    """What is timed: models, batch sizes, rounds, tokens per call, whether every variant runs once before."""

    shapes: tuple[Shape, ...]
    batches: tuple[int, ...]
    rounds: int
    new_tokens: int
    warm_up: bool


FULL = Plan((LLAVA_7B, QWEN_7B), (1, 8), 7, 33, warm_up=True)
TINY = Plan((LLAVA_TINY, QWEN_TINY), (1, 2), 1, 3, warm_up=False)


@dataclass(frozen=True)
class Traffic:
    """Bytes that a decode step must read.

    Args:
        weights: Of the decoder and its head, once per forward.
        position: Keys and values of one position of one row.
    """

    weights: int
    position: int

    @classmethod
    def of(cls, model: Any) -> Traffic:
        """Count the bytes of a model."""
        language = model.model.language_model
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        weights = _size(language) - _size(embedding) + _size(head)
        text = model.config.get_text_config()
        width = text.num_key_value_heads * (text.hidden_size // text.num_attention_heads)
        return cls(weights, 2 * text.num_hidden_layers * width * head.weight.element_size())

    def step(self, forwards: float, positions: float) -> float:
        """Bytes of one step of `forwards` forwards over `positions` cached positions, all rows together."""
        return forwards * self.weights + positions * self.position


def _size(module: Any) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


def run(out: Path, device: torch.device, *, tiny: bool, seconds: float) -> Results:
    """Time all variants of all models and batch sizes."""
    budget = Budget(seconds)
    plan = TINY if tiny else FULL
    bandwidth = copy_bandwidth(device, COPIED // 64 if tiny else COPIED)
    every = {"gpu_name": machine(device)["gpu_name"], **versions(), "dtype": "bfloat16"}
    about = {**machine(device), "dtype": "bfloat16", "copy_bandwidth_gb_per_s": bandwidth / 1e9}
    results = Results(out, "guard", "Guarded generate on a GPU", about, SHOWN, every, notes=[*NOTES])
    for index, shape in enumerate(plan.shapes):
        _measure_model(results, shape, device, budget.share(len(plan.shapes) - index), plan, bandwidth)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return results


def _measure_model(
    results: Results, shape: Shape, device: torch.device, budget: Budget, plan: Plan, bandwidth: float
) -> None:
    """Add the rows of one model."""
    if not budget.left:
        results.add(model=shape.name, batch=None, variant=PLAIN, rounds=0, status=OUT_OF_TIME)
        return
    try:
        model = shape.build(device, torch.bfloat16)
    except torch.OutOfMemoryError:
        results.add(model=shape.name, batch=None, variant=PLAIN, rounds=0, status=OUT_OF_MEMORY)
        return
    for index, batch in enumerate(plan.batches):
        race = _race(shape, model, batch, device, budget.share(len(plan.batches) - index), plan)
        for variant in race.variants:
            row = {"model": shape.name, "batch": batch, **race.row(variant), **_facts(shape, plan.new_tokens)}
            results.add(**row, **_floor(shape, variant, row, Traffic.of(model), bandwidth, plan.new_tokens))
        results.write()


def ways(model: Any, inputs: Mapping[str, Tensor]) -> list[Variant]:
    """Plain generate, a cache in place alone, and every mechanism: branches, work inside the layers, a search that owns the loop."""
    search = Guard(model, stack=[OPERA(rollbacks=0)])
    alone = Variant(IN_PLACE, in_place(model), inputs)
    return [
        *guarded(model, inputs),
        *inside(model, inputs),
        Variant(SEARCH, search.generate, inputs, guard=search),
        alone,
    ]


def _race(shape: Shape, model: Any, batch: int, device: torch.device, budget: Budget, plan: Plan) -> Race:
    race = Race(ways(model, shape.inputs(model, batch)), plan.new_tokens, device)
    if plan.warm_up:
        race.warm_up(budget)
    for number in range(plan.rounds):
        race.run(number, budget)
    return race


def _facts(shape: Shape, new_tokens: int) -> Row:
    return {"prompt_tokens": shape.prompt_tokens, "image_tokens": shape.image_tokens, "new_tokens": new_tokens}


def _floor(shape: Shape, variant: Variant, row: Row, traffic: Traffic, bandwidth: float, new_tokens: int) -> Row:
    """The floor of a step; nothing for a variant that was not measured."""
    if not row["rounds"]:
        return {"floor_ms": None, "floor_bytes": None, "decode_over_floor": None}
    grown = new_tokens / 2
    contexts = [shape.prompt_tokens + grown]
    if "noise" in variant.name:
        contexts.append(shape.prompt_tokens + grown)
    elif "image-free" in variant.name:
        contexts.append(shape.prompt_tokens - shape.image_tokens - len(shape.fences) + grown)
    elif variant.name == SEARCH:
        contexts *= row["rows"] // row["batch"]
    needed = traffic.step(row["decode_forwards_per_token"] or 1.0, row["batch"] * sum(contexts))
    floor = needed / bandwidth * 1e3
    return {"floor_ms": floor, "floor_bytes": round(needed), "decode_over_floor": row["decode_ms_p50"] / floor}
