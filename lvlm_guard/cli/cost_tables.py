"""Tables of `lvlm-guard plan` and `lvlm-guard bench cost`, no wider than 80 columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console

from lvlm_guard.bench.running.branch_lengths import Uncounted
from lvlm_guard.bench.running.cost import Cost
from lvlm_guard.bench.running.cost_model import BranchLength, Prediction
from lvlm_guard.bench.running.memory_model import RESERVE, Memory, Room
from lvlm_guard.cli.tables import count_of, show_table

TIMES = ("first ms", "ratio", "token ms", "ratio", "answer ms", "ratio")
WORK = ("tokens/s", "prefills", "forwards a token", "rows", "MiB")
PARTS = ("weights", "caches", "logits", "activations", "total", "largest batch")
MEBIBYTE = 2**20
WHOLE = 100
"""From here on numbers are shown without decimals."""


@dataclass(frozen=True)
class Work:
    """What is predicted: a stack on a model, and the lengths of prompt, picture and answer in tokens.

    Args:
        model: Name of the model.
        stack: What was given for the stack.
        batch: Prompts at once.
        prompt_tokens: Text tokens of a prompt.
        image_tokens: Tokens of its picture.
        tokens: Tokens of an answer.
        branches: How long the context of each branch is.
        uncounted: Work of the stack that is not in the prediction.
    """

    model: str
    stack: str
    batch: int
    prompt_tokens: int
    image_tokens: int
    tokens: int
    branches: tuple[BranchLength, ...]
    uncounted: tuple[Uncounted, ...]


def show_predictions(work: Work, predictions: Sequence[Prediction], console: Console) -> None:
    """Print a table of floors, a row for each machine and way to decode, and what they rest on."""
    steps = work.tokens - 1
    rows = [
        (
            prediction.target,
            "plain" if prediction.executor == "none" else prediction.executor,
            *_cells(prediction.prefill_ms, prediction.prefill_ratio),
            *_cells(prediction.step_ms, prediction.ratio),
            *_cells(prediction.answer_ms(steps), prediction.answer_ratio(steps)),
        )
        for prediction in predictions
    ]
    console.print(f"{work.model} with {work.stack}: predicted, not measured", highlight=False, markup=False)
    show_table(console, ("machine", "decoding", *TIMES), rows, figures=TIMES)
    for line in _explain(work):
        console.print(line, highlight=False, markup=False)


def _explain(work: Work) -> Iterator[str]:
    yield (
        f"{work.batch} x {work.prompt_tokens} text and {work.image_tokens} image tokens, answers of {work.tokens} tokens. "
        "Floors: the time to read the bytes and do the operations, nothing else. Ratios are to plain."
    )
    for branch in work.branches:
        encoder = ", encodes a picture of its own" if branch.encodes else ""
        yield (
            f"Branch {branch.name!r}: {work.prompt_tokens + branch.text} text and {branch.image * work.image_tokens:.0f} "
            f"image tokens{encoder}."
        )
    if not work.branches:
        yield "The stack asks for no branch, so only its uncounted work costs more than plain generate."
    for uncounted in work.uncounted:
        cost = f" (its cost: {uncounted.cost})" if uncounted.cost else ""
        yield f"Not counted: {', '.join(uncounted.hooks)} of {uncounted.strategy}{cost}."


def show_memories(memories: Sequence[Memory], room: Room | None, console: Console, *, is_estimate: bool) -> None:
    """Print a table of memory in MiB, a row for each way to decode, and whether it fits into a device."""
    rows = [
        (
            "plain" if memory.executor == "none" else memory.executor,
            *(_number(size / MEBIBYTE) for size in (memory.weights, memory.caches, memory.logits, memory.activations)),
            _number(memory.total / MEBIBYTE),
            "" if room is None else str(memory.largest_batch(room.usable)),
        )
        for memory in memories
    ]
    console.print("Memory in MiB, by arithmetic", highlight=False, markup=False)
    show_table(console, ("decoding", *PARTS), rows, figures=PARTS)
    for line in _explain_memories(memories, room, is_estimate=is_estimate):
        console.print(line, highlight=False, markup=False)


def _explain_memories(memories: Sequence[Memory], room: Room | None, *, is_estimate: bool) -> Iterator[str]:
    kinds = (
        "Caches are exact; weights, logits and activations are"
        if is_estimate
        else "Weights and caches are exact; logits and activations are"
    )
    yield f"{kinds} estimates. Attention is taken to keep no matrix of all positions, as sdpa and flash do; eager does."
    if room is None:
        return
    share = f"{room.size / 1e9:g} GB less {RESERVE:.0%} for the device itself"
    for memory in memories:
        name = "plain" if memory.executor == "none" else memory.executor
        verdict = "fits" if memory.total <= room.usable else "does not fit"
        yield f"{name}: a batch of {memory.batch} {verdict} into {share}; the largest that fits is {memory.largest_batch(room.usable)}."


def show_costs(costs: Mapping[str, Cost], title: str, console: Console) -> None:
    """Print measured times beside plain's, then speed, forwards, rows and memory."""
    times, work = [], []
    for name, cost in costs.items():
        spreads = (cost.first_ms, cost.first_ratio, cost.token_ms, cost.token_ratio, cost.call_ms, cost.call_ratio)
        medians = [None if spread is None else spread.median for spread in spreads]
        times.append((name, *_cells(*medians[:2]), *_cells(*medians[2:4]), *_cells(*medians[4:])))
        work.append((name, *_counts(cost)))
    memory = next(iter(costs.values())).memory
    console.print(title, highlight=False, markup=False)
    show_table(console, ("stack", *TIMES), times, figures=TIMES)
    show_table(console, ("stack", *WORK), work, figures=WORK)
    console.print(
        f"Medians of {count_of(cost.calls, 'call')}; ratios, prefills, forwards and rows are to plain. Memory: {memory}.",
        highlight=False,
        markup=False,
    )


def _counts(cost: Cost) -> tuple[str, ...]:
    forwards = ("", "") if cost.forwards is None else (f"{cost.forwards.prefill:.2f}", f"{cost.forwards.decode:.2f}")
    rows = "" if cost.rows_per_forward is None else f"{cost.rows_per_forward:g}"
    peak = "" if cost.peak_bytes is None else _number(cost.peak_bytes / MEBIBYTE)
    return (_number(cost.tokens_per_second.median), *forwards, rows, peak)


def _cells(milliseconds: float | None, ratio: float | None) -> tuple[str, str]:
    """Return a time and its ratio to plain's, empty where the call had no such part."""
    return "" if milliseconds is None else _number(milliseconds), "" if ratio is None else f"{ratio:.2f}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= WHOLE else f"{value:.3g}"
