"""A bench run with and without `--looks`: `python benchmarks/suites_on_looks.py --out results`.

Batches as `lvlm-guard bench run` answers them, by the same code: of the suite scenes, the questions about each picture and its
caption, and in the shape of POPE, six yes/no questions about each picture. Both on the bundled model, whose prompts have about 70
tokens, and on a random LLaVA of 27 million parameters with 576 image tokens, in fp32 on one thread. Both ways take turns in
interleaved rounds of one process. Time is processor time of the process, pictures and templates included, and every ratio is
to the same stack without looks in the same round. Models were tried once before.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from measuring import Results, machine, spread
from shared_looks import build
from tqdm import tqdm

from lvlm_guard import Guard
from lvlm_guard.bench.items import Item
from lvlm_guard.bench.running.looking import BatchGenerator
from lvlm_guard.testbed.model import load
from lvlm_guard.testbed.suite import Scenes

STACKS = ("plain", "vcd", "m3id")
OBJECTS = ("circle", "square", "triangle", "star", "cross", "ring")
SIDE, PATCH = 192, 8
"""Of the pictures of the larger model, in pixels: 576 image tokens."""
SHOWN = ("shape", "suite", "stack", "way", "questions", "seconds", "ratio")
PICTURES = 2


@dataclass(frozen=True)
class Batch:
    """Items of one batch with their prompts."""

    items: Sequence[Item]
    prompts: Sequence[Any]
    max_new_tokens: int


def build_model(shape: str) -> tuple[Any, Any]:
    """Return a model and its processor."""
    model, processor = load()
    if shape == "bundled":
        return model, processor
    processor = copy.deepcopy(processor)
    processor.image_processor.do_resize = True
    processor.image_processor.size = processor.image_processor.crop_size = {"height": SIDE, "width": SIDE}
    large = build("27m")
    config = large.config
    config.image_token_index = processor.image_token_id
    config.vision_config.image_size, config.vision_config.patch_size = SIDE, PATCH
    torch.manual_seed(0)
    large = transformers.LlavaForConditionalGeneration(config).eval()
    large.generation_config.eos_token_id = None
    return large, processor


def draw_batches(suite: str) -> list[Batch]:
    """Return the batches of a suite: questions together, captions together, as a run lays them out."""
    scenes = Scenes(count=PICTURES)
    items = list(scenes.load(None).items)
    if suite == "pope":
        images = dict.fromkeys(item.image for item in items)
        items = [_ask(image, name) for image in images for name in OBJECTS]
    lengths = sorted({item.max_new_tokens for item in items})
    groups = [[item for item in items if item.max_new_tokens == length] for length in lengths]
    return [Batch(group, [_write(scenes, item) for item in group], group[0].max_new_tokens) for group in groups]


def _ask(image: str | None, name: str) -> Item:
    return Item(
        f"{image}/{name}", image, f"is there a {name} in the image", "yes", "object", "yes/no", max_new_tokens=1
    )


def _write(scenes: Scenes, item: Item) -> list[dict[str, Any]]:
    assert item.image is not None
    picture = {"type": "image", "image": scenes.picture(None, item.image)}
    return [{"role": "user", "content": [picture, {"type": "text", "text": item.prompt}]}]


def answer(guard: Guard, batches: Sequence[Batch], *, looks: bool) -> None:
    """Answer batches as a run does."""
    for batch in batches:
        settings = {"do_sample": False, "max_new_tokens": batch.max_new_tokens}
        generator = BatchGenerator(guard, settings, lambda: None)
        generator.generate(batch.items, batch.prompts, looks=looks)


def measure(shape: str, suites: Sequence[str], rounds: int) -> dict[tuple[str, str, str], list[float]]:
    """Return seconds of processor time by suite, stack and way, one entry a round."""
    model, processor = build_model(shape)
    guards = {stack: Guard(model, processor, None if stack == "plain" else stack) for stack in STACKS}
    ways = [(suite, stack, way) for suite in suites for stack in STACKS for way in ("whole prompts", "--looks")]
    batches = {suite: draw_batches(suite) for suite in suites}
    seconds: dict[tuple[str, str, str], list[float]] = {way: [] for way in ways}
    for number in tqdm(range(rounds + 1)):
        for suite, stack, way in ways:
            started = time.process_time()
            answer(guards[stack], batches[suite], looks=way == "--looks")
            if number:  # the first round tries models and fills caches
                seconds[suite, stack, way].append(time.process_time() - started)
    return seconds


def add_rows(results: Results, shape: str, seconds: dict[tuple[str, str, str], list[float]]) -> None:
    """Add a row for every way; ratios are medians over rounds."""
    for (suite, stack, way), values in seconds.items():
        pairs = zip(values, seconds[suite, stack, "whole prompts"], strict=True)
        ratios = [value / whole for value, whole in pairs]
        count = sum(len(batch.items) for batch in draw_batches(suite))
        row = {"shape": shape, "suite": suite, "stack": stack, "way": way, "questions": count, "rounds": len(values)}
        results.add(
            **row, **spread("seconds", values), **spread("ratio", ratios), median_ratio=statistics.median(ratios)
        )


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="the bundled model alone, to check that the script works")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    about = {**machine(torch.device("cpu")), "pictures": PICTURES}
    results = Results(arguments.out, "suites_on_looks", "Bench runs on looks", about, SHOWN, csv=False)
    results.notes.extend(line for line in (__doc__ or "").split("\n\n")[1:])
    for shape in ("bundled",) if arguments.tiny else ("bundled", "27m"):
        rounds = 1 if arguments.tiny else arguments.rounds
        add_rows(results, shape, measure(shape, ("scenes", "pope"), rounds))
    results.write()
    print(results.markdown())


if __name__ == "__main__":
    main()
