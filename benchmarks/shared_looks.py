"""Questions about one picture, on a look and as whole prompts: `python benchmarks/shared_looks.py --out results`.

A random LLaVA in fp32 on one thread. For each stack, six questions of several lengths are answered with one token each: in
one batch of whole prompts, and on a look that is opened for them; then a caption of 32 tokens is written and eight questions
follow. All ways take turns in interleaved rounds of one process. Time is processor time of the process, and every ratio is to
plain generate on whole prompts in the same round. A look is opened anew in each round; it has tried the model once before.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from measuring import Results, machine, spread
from torch import Tensor
from tqdm import tqdm

from lvlm_guard import Guard

STACKS = ("plain", "vcd", "m3id", "vdd")
QUESTIONS, FOLLOWING, CAPTION = 6, 8, 32
BEFORE = 36
"""Tokens before the picture."""
IMAGE = 3
"""Id of the image placeholder."""
SHOWN = ("shape", "work", "stack", "way", "seconds", "ratio")
SHAPES = {"27m": (512, 8, 576), "tiny": (32, 2, 16)}
"""Width, layers and image tokens."""


def build(shape: str) -> Any:
    """Return a random model."""
    width, layers, tokens = SHAPES[shape]
    side = round(tokens**0.5)
    tower = {
        "hidden_size": width // 2,
        "intermediate_size": width * 2,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
    }
    vision = {"model_type": "clip_vision_model", **tower, "image_size": side * 14, "patch_size": 14}
    text = {
        "model_type": "llama", "hidden_size": width, "intermediate_size": width * 8 // 3, "num_hidden_layers": layers,
        "num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": 1024, "max_position_embeddings": 2048,
        "pad_token_id": 0, "eos_token_id": None,
    }  # fmt: skip
    torch.manual_seed(0)
    config = transformers.LlavaConfig(
        text_config=text, vision_config=vision, image_token_index=IMAGE, image_seq_length=tokens
    )
    return transformers.LlavaForConditionalGeneration(config).eval()


def draw_inputs(shape: str) -> dict[str, Tensor]:
    """Return model inputs of one prompt that ends behind its picture, but for one token."""
    _, _, tokens = SHAPES[shape]
    side = 14 * round(tokens**0.5)
    draw = torch.Generator().manual_seed(0)
    before = torch.randint(4, 1000, (1, BEFORE), generator=draw)
    ids = torch.cat([before, torch.full((1, tokens), IMAGE), torch.full((1, 1), 9)], dim=1)
    pixels = torch.randn(1, 3, side, side, generator=draw)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


def ask(inputs: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """Return a batch of questions of 12 to 12 + count tokens about the picture, padded on the left."""
    draw = torch.Generator().manual_seed(1)
    beginning = inputs["input_ids"][0, :-1].tolist()
    rows = [beginning + torch.randint(4, 1000, (12 + number,), generator=draw).tolist() for number in range(count)]
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    pixels = inputs["pixel_values"].expand(count, -1, -1, -1)
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}


def answer_whole(guard: Guard, inputs: dict[str, Tensor]) -> None:
    """Answer six questions as whole prompts."""
    guard.generate(**ask(inputs, QUESTIONS), max_new_tokens=1, do_sample=False)


def answer_on_look(guard: Guard, inputs: dict[str, Tensor]) -> None:
    """Answer six questions on a look."""
    with guard.looking(inputs) as look:
        look.generate(**ask(inputs, QUESTIONS), max_new_tokens=1, do_sample=False)


def describe_whole(guard: Guard, inputs: dict[str, Tensor]) -> None:
    """Write a caption, then answer eight questions, as whole prompts."""
    guard.generate(**ask(inputs, 1), max_new_tokens=CAPTION, do_sample=False)
    guard.generate(**ask(inputs, FOLLOWING), max_new_tokens=1, do_sample=False)


def describe_on_look(guard: Guard, inputs: dict[str, Tensor]) -> None:
    """Write a caption, then answer eight questions, on a look."""
    with guard.looking(inputs) as look:
        look.generate(**ask(inputs, 1), max_new_tokens=CAPTION, do_sample=False)
        look.generate(**ask(inputs, FOLLOWING), max_new_tokens=1, do_sample=False)


WORK: dict[str, dict[str, Callable[[Guard, dict[str, Tensor]], None]]] = {
    "six yes/no questions": {"whole prompts": answer_whole, "look": answer_on_look},
    "caption and eight questions": {"whole prompts": describe_whole, "look": describe_on_look},
}


def measure(shape: str, rounds: int) -> dict[tuple[str, str, str], list[float]]:
    """Return seconds of processor time of every way, by work, stack and way, one entry a round."""
    model, inputs = build(shape), draw_inputs(shape)
    guards = {stack: Guard(model, stack=stack) for stack in STACKS}
    ways = [(work, stack, way) for work, ways in WORK.items() for stack in STACKS for way in ways]
    seconds: dict[tuple[str, str, str], list[float]] = {way: [] for way in ways}
    for number in tqdm(range(rounds + 1)):
        for work, stack, way in ways:
            started = time.process_time()
            WORK[work][way](guards[stack], inputs)
            if number:  # the first round tries models and fills caches
                seconds[work, stack, way].append(time.process_time() - started)
    return seconds


def add_rows(results: Results, shape: str, seconds: dict[tuple[str, str, str], list[float]]) -> None:
    """Add a row for every way; ratios are medians over rounds."""
    for (work, stack, way), values in seconds.items():
        base = seconds[work, "plain", "whole prompts"]
        ratios = [value / plain for value, plain in zip(values, base, strict=True)]
        row = {"shape": shape, "work": work, "stack": stack, "way": way, "rounds": len(values)}
        results.add(
            **row, **spread("seconds", values), **spread("ratio", ratios), median_ratio=statistics.median(ratios)
        )


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="a toy shape, to check that the script works")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    shape = "tiny" if arguments.tiny else "27m"
    about = {**machine(torch.device("cpu")), "tokens of the beginning": BEFORE + SHAPES[shape][2]}
    results = Results(
        arguments.out, "shared_looks", "Questions on a look and as whole prompts", about, SHOWN, csv=False
    )
    results.notes.extend(line for line in (__doc__ or "").split("\n\n")[1:])
    add_rows(results, shape, measure(shape, 1 if arguments.tiny else arguments.rounds))
    results.write()
    print(results.markdown())


if __name__ == "__main__":
    main()
