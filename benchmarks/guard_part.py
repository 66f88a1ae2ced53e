"""Guarded generate on a GPU, on random weights in the shapes of public models, against plain generate and the floor."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measuring import Budget, Results, Row, copy_bandwidth, machine, versions
from shapes import LLAVA_7B, LLAVA_TINY, QWEN_7B, QWEN_TINY, Shape
from variants import OUT_OF_MEMORY, OUT_OF_TIME, PLAIN, Race, Variant, guarded

BATCHES = (1, 8)
ROUNDS, NEW_TOKENS = 7, 33
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
    "Weights are random, so what is generated means nothing; speed does not depend on it.",
)


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
    shapes = (LLAVA_TINY, QWEN_TINY) if tiny else (LLAVA_7B, QWEN_7B)
    bandwidth = copy_bandwidth(device, COPIED // 64 if tiny else COPIED)
    every = {"gpu_name": machine(device)["gpu_name"], **versions(), "dtype": "bfloat16"}
    about = {**machine(device), "dtype": "bfloat16", "copy_bandwidth_gb_per_s": bandwidth / 1e9}
    results = Results(out, "guard", "Guarded generate on a GPU", about, SHOWN, every, notes=[*NOTES])
    for index, shape in enumerate(shapes):
        share = budget.share(len(shapes) - index)
        _measure_model(results, shape, device, share, (2, 4) if tiny else (ROUNDS, NEW_TOKENS), bandwidth)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return results


def _measure_model(
    results: Results, shape: Shape, device: torch.device, budget: Budget, size: tuple[int, int], bandwidth: float
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
    for index, batch in enumerate(BATCHES):
        race = _race(shape, model, batch, device, budget.share(len(BATCHES) - index), size)
        for variant in race.variants:
            row = {"model": shape.name, "batch": batch, **race.row(variant), **_facts(shape, size[1])}
            results.add(**row, **_floor(shape, variant, row, Traffic.of(model), bandwidth, size[1]))
        results.write()


def _race(shape: Shape, model: Any, batch: int, device: torch.device, budget: Budget, size: tuple[int, int]) -> Race:
    rounds, new_tokens = size
    race = Race(guarded(model, shape.inputs(model, batch)), new_tokens, device)
    race.warm_up(budget)
    for number in range(rounds):
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
    needed = traffic.step(row["decode_forwards_per_token"] or 1.0, row["batch"] * sum(contexts))
    floor = needed / bandwidth * 1e3
    return {"floor_ms": floor, "floor_bytes": round(needed), "decode_over_floor": row["decode_ms_p50"] / floor}
