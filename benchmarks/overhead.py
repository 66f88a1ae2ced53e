"""Decode overhead of a guard on the CPU: `python benchmarks/overhead.py --out results`.

A random LLaVA in bf16, of 0.4 billion parameters unless told otherwise, or a model with its own weights (`--model DIR`). Plain generate, the empty stack, a noise branch (batched and
sequential), an image-free branch, readouts, attention edits, hidden edits, transformers' own classifier-free guidance
and plain generate of twice the rows take turns in interleaved rounds of one process; every ratio is taken within one
round. With `--only`, work inside the layers alone: all of it generates side by side, taking turns token by token.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from folder_shape import FolderShape
from lockstep import Lockstep, sharing
from measuring import PERCENTILES, Budget, Results, Row, machine
from shapes import LLAVA_7B, LLAVA_7B_LAYERS, LLAVA_SMALL, LLAVA_TINY, Shape
from torch import nn
from tqdm import tqdm
from variants import IN_PLACE, PLAIN, Race, Variant, guarded, in_place, inside, multiplied

SHAPES = {"0.4b": LLAVA_SMALL, "7b": LLAVA_7B, "7b-layers": LLAVA_7B_LAYERS}
BATCHES = (1, 4)
GUIDANCE = 1.5
GOALS = {
    "noise branch, batched": 1.25,
    "image-free branch, batched": 1.25,
    "empty stack": 1.005,
    "readouts (dola)": 1.05,
    "readouts (deco)": 1.05,
    "attention edits (vaf)": 1.15,
    "hidden edits (vsv)": 1.02,
    "hidden edits (vti)": 1.02,
    "hidden edits (nullu)": 1.02,
}
"""Goals of a decode step at batch 1; the empty stack has its goal at every batch size."""

SHOWN = ("batch", "variant", "rounds", "decode_ms", "decode_ratio", "prefill_ms", "prefill_ratio", "goal", "verdict")
SHOWN_OF_LOCKSTEP = ("variant", "rounds", "decode_ms", "decode_ratio", "ratio_interval", "goal", "verdict")
AGAIN = "plain, again"
TWICE = "plain, twice the rows"
MULTIPLIED = "plain, one multiplication a layer"
BESIDE = frozenset({PLAIN, AGAIN, IN_PLACE, MULTIPLIED})
"""What tells how sure the ratios of work inside the layers are."""

KINDS = ("readouts", "attention", "hidden")
"""Work inside main's layers that has a goal; the names of its variants begin so."""

NOTES = (
    "Times are medians over rounds with the 20th and 80th percentile; decode is per token after the first.",
    (
        "Ratios are to plain generate in the same round; `plain, again` is the same measurement twice: its distance from 1 is "
        "the error of every other ratio."
    ),
    (
        "`plain, cache in place` is plain generate with a cache that grows without copying, as a guard's does: what it lies below 1 "
        "is saved under every guard with a stack, what another row lies above it is what that row costs."
    ),
    (
        "`plain, one multiplication a layer` is the least that hidden edits can add: a hook without a guard on every feed-forward "
        "block, which multiplies its output by a number."
    ),
    "What is generated means nothing: weights or pictures are random; speed does not depend on it.",
)
NOTES_OF_LOCKSTEP = (
    (
        "All generate side by side in one thread, a token of each in turn, the order drawn anew. A token's ratio is to plain's "
        "token beside it, a round's the median over its tokens; the interval is of the median over rounds, 95 %, by bootstrap."
    ),
)
NOTES_OF_ALL = (
    "`plain, twice the rows` is the floor of a noise branch: the same rows with no guard around them.",
    (
        "Classifier-free guidance runs the prompt without the image as its negative prompt, so it has the rows and "
        "contexts of the image-free branch."
    ),
)


def variants(shape: Shape | FolderShape, model: Any, batch: int) -> list[Variant]:
    """Everything that is compared at one batch size."""
    inputs = shape.inputs(model, batch)
    negative = shape.text_only(inputs["input_ids"])
    guidance: dict[str, Any] = {"guidance_scale": GUIDANCE, "negative_prompt_ids": negative}
    guidance["negative_prompt_attention_mask"] = torch.ones_like(negative)
    return [
        *guarded(model, inputs),
        *inside(model, inputs),
        Variant(AGAIN, model.generate, inputs),
        Variant("classifier-free guidance (transformers)", model.generate, inputs, guidance),
        Variant(IN_PLACE, in_place(model), inputs),
        Variant(MULTIPLIED, multiplied(model), inputs),
        Variant(TWICE, model.generate, shape.inputs(model, 2 * batch)),
    ]


def judge(row: Row, again: Row) -> Row:
    """A row with its goal and whether the median decode ratio keeps to it.

    Args:
        row: What was measured.
        again: Plain against itself at the same batch size: a distance from the goal below how far it is from 1 proves nothing.
    """
    goal = GOALS.get(row["variant"]) if row["batch"] == 1 or row["variant"] == "empty stack" else None
    ratio = row.get("decode_ratio_p50")
    if goal is None or ratio is None:
        return {**row, "goal": goal, "verdict": None}
    verdict = "met" if ratio <= goal else "missed"
    return {**row, "goal": goal, "verdict": f"{verdict}, within noise" if _is_open(row, goal, again) else verdict}


def _is_open(row: Row, goal: float, again: Row) -> bool:
    """Whether the ratio's interval, or else the error of plain against itself, leaves open on which side of the goal it lies."""
    if (interval := row.get("ratio_interval")) is not None:
        low, high = interval
        return bool(low <= goal <= high)
    noise = max(abs((again.get(f"decode_ratio_p{percentile}") or 1.0) - 1.0) for percentile in PERCENTILES)
    return bool(abs(row["decode_ratio_p50"] - goal) < noise)


def races(shape: Shape | FolderShape, model: Any, new_tokens: int, only: Sequence[str]) -> dict[int, Race]:
    """What is measured, by batch size: some kinds alone at batch 1, token by token, or everything in rounds."""
    device = torch.device("cpu")
    if only:
        return {1: Lockstep(_apart(shape, model, only), new_tokens, device)}
    return {batch: Race(variants(shape, model, batch), new_tokens, device) for batch in BATCHES}


def measure(running: Mapping[int, Race], repeat: int, budget: Budget) -> Iterator[list[Row]]:
    """Rows of all batch sizes, after every round."""
    for race in running.values():
        race.warm_up(budget)
    for number in tqdm(range(repeat), unit="round"):
        for race in running.values():
            race.run(number, budget)
        yield [row for batch, race in running.items() for row in _judged(batch, race)]


def _apart(shape: Shape | FolderShape, model: nn.Module, only: Sequence[str]) -> list[Variant]:
    """Variants of some kinds at batch 1, each on modules of its own."""
    named = [one.name for one in variants(shape, model, 1)]
    asked = [name for name in named if name in BESIDE or (name in GOALS and name.startswith(tuple(only)))]
    found = [variants(shape, sharing(model), 1) for _ in asked]
    return [next(one for one in mine if one.name == name) for name, mine in zip(asked, found, strict=True)]


def _judged(batch: int, race: Race) -> list[Row]:
    rows = [{"batch": batch, **race.row(one)} for one in race.variants]
    again = next(row for row in rows if row["variant"] == AGAIN)
    return [judge(row, again) for row in rows]


def _about(shape: Shape | FolderShape, model: Any, new_tokens: int, repeat: int) -> Row:
    text = model.config.get_text_config()
    return {
        "model": shape.name,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": "bfloat16",
        "text_shape": f"{text.num_hidden_layers} layers, hidden {text.hidden_size}, ffn {text.intermediate_size}, "
        f"vocabulary {text.vocab_size}",
        "prompt_tokens": shape.prompt_tokens,
        "image_tokens": shape.image_tokens,
        "new_tokens": new_tokens,
        "rounds_asked_for": repeat,
    }


def verdicts(rows: Sequence[Row]) -> list[str]:
    """One line per goal, with plain against itself and the floor of a second row beside it."""
    known = {(row["batch"], row["variant"]): row for row in rows}
    floors = {
        AGAIN: "plain against itself",
        IN_PLACE: "plain with its cache in place",
        TWICE: "twice the rows",
        MULTIPLIED: "one multiplication a layer",
    }
    found = []
    for row in rows:
        if row["verdict"] is not None:
            beside = [
                f"{told} {_ratio(known[row['batch'], name])}"
                for name, told in floors.items()
                if (row["batch"], name) in known
            ]
            found.append(
                f"{row['variant']}, batch {row['batch']}: decode {row['decode_ratio_p50']:.3f}x of plain, goal "
                f"{row['goal']}x: {row['verdict']} ({', '.join(beside)})"
            )
    return found


def _ratio(row: Row) -> str:
    low, middle, high = (row.get(f"decode_ratio_p{percentile}") for percentile in PERCENTILES)
    return "not measured" if middle is None else f"{middle:.3f}x, {low:.3f} to {high:.3f}"


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Decode overhead of a guard on the CPU.")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for the results")
    parser.add_argument(
        "--shape",
        choices=SHAPES,
        default="0.4b",
        help="7b needs 20 GiB of memory, 7b-layers is 4 of its 32 layers (default 0.4b)",
    )
    parser.add_argument("--model", help="a folder with a model, instead of a shape with random weights")
    parser.add_argument("--called", default="model", help="what the results of --model are called (default model)")
    parser.add_argument("--only", choices=KINDS, nargs="+", default=(), help="these alone, at batch 1, token by token")
    parser.add_argument("--repeat", type=int, default=5, help="rounds (default 5)")
    parser.add_argument("--new-tokens", type=int, default=25, help="tokens per call, at least 2 (default 25)")
    parser.add_argument("--seconds", type=float, default=600, help="no new measurement after this (default 600)")
    parser.add_argument("--tiny", action="store_true", help="a toy model, in seconds, to see that the script runs")
    parsed = parser.parse_args(given)
    if parsed.repeat < 1 or parsed.new_tokens < 2:
        parser.error("--repeat must be at least 1 and --new-tokens at least 2.")
    return parsed


def main(given: Sequence[str] | None = None) -> int:
    """Write `overhead.json` and `overhead.md` (or `overhead-7b-hidden`) after every round, print the page; 1 if a variant failed."""
    asked = arguments(given)
    repeat, new_tokens = (2, 4) if asked.tiny else (asked.repeat, asked.new_tokens)
    shape = _shape(asked)
    results = _results(asked)
    ran_on = results.about
    model = shape.build(torch.device("cpu"), torch.bfloat16)
    for rows in measure(races(shape, model, new_tokens, asked.only), repeat, Budget(asked.seconds)):
        load = machine(torch.device("cpu"))["load_average"]
        results.about = {**ran_on, "load_average_at_the_end": load, **_about(shape, model, new_tokens, repeat)}
        results.rows = rows
        results.notes = [*verdicts(rows), *NOTES, *(NOTES_OF_LOCKSTEP if asked.only else NOTES_OF_ALL)]
        results.write()
    print(results.markdown())
    return int(any(row["status"].startswith("failed") for row in results.rows))


def _shape(asked: argparse.Namespace) -> Shape | FolderShape:
    if asked.model is not None:
        return FolderShape(asked.model)
    return LLAVA_TINY if asked.tiny else SHAPES[asked.shape]


def _results(asked: argparse.Namespace) -> Results:
    """Where the rows go, and what they ran on."""
    sized = [] if asked.tiny or asked.shape == "0.4b" else [asked.shape]
    sized = sized if asked.model is None else [asked.called]
    name = "-".join(["overhead", *sized, *asked.only])
    shown = SHOWN_OF_LOCKSTEP if asked.only else SHOWN
    about = machine(torch.device("cpu"))
    return Results(asked.out, name, "Overhead of a guard on the CPU", about, shown, csv=False)


if __name__ == "__main__":
    raise SystemExit(main())
