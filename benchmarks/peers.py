"""The same contrast by other packages: `python benchmarks/peers.py --out results`, in the environment of `make peers`.

Random LLaVAs of 27 and 135 million parameters. Plain generate, transformers' classifier-free guidance, mitigv, a loop written
with nnsight, and guards answer the same prompts, in interleaved rounds of one process on one thread. Ratios are of processor
time, to plain generate in the same round, for a short answer (2 tokens) and for a caption (34).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from lvlm_guard_contrastive import M3ID, VCD
from measuring import Results, machine, spread
from peer_loops import mitigv_loop, nnsight_loop
from shapes import LLAVA_27M, LLAVA_135M, LLAVA_TINY, Shape
from tqdm import tqdm

from lvlm_guard import Guard

LENGTHS = {"short answer": 2, "caption": 34}
BATCHES = {LLAVA_TINY: (1,), LLAVA_27M: (1, 4, 8), LLAVA_135M: (1,)}
"""Prompts of one batch; a round of the large model takes a minute even at one."""
PLAIN = "plain generate"
SHOWN = ("model", "batch", "answer", "branch", "by", "rounds", "seconds", "ratio")
NOTES = (
    "Ratios are medians over rounds with the 20th and 80th percentile.",
    "Two rows of plain generate for each prompt are the floor of a branch that keeps the image.",
    "mitigv runs the two branches one after the other; nnsight's loop is a contrast written by hand, a trace for each forward.",
    "Settings are each package's own defaults; what is generated means nothing, and every answer has the same number of tokens.",
)
Generate = Callable[[int], Any]


def ways(shape: Shape, model: Any, batch: int) -> dict[tuple[str, str], Generate]:
    """Everything that answers, by branch and by whom."""
    inputs = shape.inputs(model, batch)
    blind = shape.text_only(inputs["input_ids"])
    without_image = {"input_ids": blind, "attention_mask": torch.ones_like(blind)}
    guidance = {
        "guidance_scale": 1.5,
        "negative_prompt_ids": blind,
        "negative_prompt_attention_mask": torch.ones_like(blind),
    }
    noised = {**inputs, "pixel_values": inputs["pixel_values"] + torch.randn_like(inputs["pixel_values"])}
    twice = {name: value.repeat_interleave(2, dim=0) for name, value in inputs.items()}
    return {
        ("none", PLAIN): _by(model.generate, inputs),
        ("none", "plain generate, two rows for each prompt"): _by(model.generate, twice),
        ("noise", "lvlm_guard"): _by(Guard(model, stack=[VCD()]).generate, inputs),
        ("noise", "mitigv"): mitigv_loop("vcd", model, inputs),
        ("noise", "nnsight"): nnsight_loop(model, inputs, noised),
        ("no image", "lvlm_guard"): _by(Guard(model, stack=[M3ID()]).generate, inputs),
        ("no image", "transformers' guidance"): _by(model.generate, inputs | guidance),
        ("no image", "mitigv"): mitigv_loop("m3id", model, inputs, without_image),
        ("no image", "nnsight"): nnsight_loop(model, inputs, without_image),
    }


def _by(generate: Callable[..., Any], inputs: Mapping[str, Any]) -> Generate:
    return lambda tokens: generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)


def measure(shape: Shape, model: Any, batch: int, repeat: int) -> Iterator[dict[str, Any]]:
    """Rows of one batch size: every way has its turn in every round, the first moving on by one."""
    known = ways(shape, model, batch)
    for answer, tokens in LENGTHS.items():
        seconds: dict[tuple[str, str], list[float]] = {way: [] for way in known}
        for number in tqdm(range(-1, repeat), desc=f"{shape.name}, batch {batch}, {answer}", unit="round"):
            order = list(known)[number % len(known) :] + list(known)[: number % len(known)]
            for way in order:
                spent = _time(known[way], tokens)
                seconds[way] += [spent] if number >= 0 else []
        yield from _rows(shape, batch, answer, seconds)


def _time(generate: Generate, tokens: int) -> float:
    start = time.process_time()
    with torch.no_grad():
        generate(tokens)
    return time.process_time() - start


def _rows(
    shape: Shape, batch: int, answer: str, seconds: Mapping[tuple[str, str], Sequence[float]]
) -> Iterator[dict[str, Any]]:
    plain = seconds["none", PLAIN]
    for (branch, by), spent in seconds.items():
        ratios = [one / base for one, base in zip(spent, plain, strict=True)]
        row = {"model": shape.name, "batch": batch, "answer": answer, "branch": branch, "by": by, "rounds": len(spent)}
        yield {**row, "seconds": round(statistics.median(spent), 4), **spread("ratio", ratios)}


def main(given: Sequence[str] | None = None) -> int:
    """Measure, and write the table after every batch size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args(given)
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    results = Results(
        options.out, "peers", "The same contrast by other packages", machine(torch.device("cpu")), SHOWN, csv=False
    )
    results.notes = list(NOTES)
    for shape in (LLAVA_TINY,) if options.tiny else (LLAVA_27M, LLAVA_135M):
        model = shape.build(torch.device("cpu"), torch.float32)
        for batch in BATCHES[shape]:
            for row in measure(shape, model, batch, options.repeat):
                results.add(**row)
            results.write()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
