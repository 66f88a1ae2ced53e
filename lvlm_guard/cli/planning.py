"""`lvlm-guard plan`: what guarding should cost and hold on a machine, by arithmetic on sizes; no weights are loaded."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from lvlm_guard import loading
from lvlm_guard.cli import options
from lvlm_guard.errors import InputError, ProcessorNeeded, nearest

if TYPE_CHECKING:
    from lvlm_guard.bench.running.cost_model import BranchLength, Prediction, Target
    from lvlm_guard.bench.running.memory_model import Memory, Room
    from lvlm_guard.bench.running.shapes import Shape
    from lvlm_guard.host.stack import Stack

MACHINES = ("a100", "h100", "h200")
VALUE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def plan(
    model: Annotated[
        str,
        typer.Option(
            metavar="MODEL", help="A local folder with a config.json, a hub id, testbed, llava-1.5-7b or qwen2.5-vl-7b."
        ),
    ],
    stack: options.Stack = options.DEFAULT_STACK,
    tokens: Annotated[int, typer.Option(min=1, help="Length of the answer.")] = 128,
    batch: Annotated[int, typer.Option(min=1, help="Prompts at once.")] = 1,
    prompt: Annotated[int, typer.Option(min=1, help="Text tokens of the prompt.")] = 64,
    image_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of the picture.", show_default="what the config says")
    ] = None,
    hardware: Annotated[
        list[str] | None,
        typer.Option(metavar="MACHINE", help=f"{', '.join(MACHINES)}; repeat for several.", show_default="all"),
    ] = None,
    bandwidth: Annotated[float | None, typer.Option(help="Memory bandwidth of another machine in GB/s.")] = None,
    tflops: Annotated[float | None, typer.Option(help="Its operations per second in 10^12.")] = None,
    gpu: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory of a device, such as 80GB: whether it is enough.")
    ] = None,
    dtype: options.Dtype = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Predict what guarding costs and holds from sizes alone: time to the first token, per token and per answer, and memory.

    Every time is a floor: in which a machine could read the bytes and do the operations. No model is run.
    """
    from lvlm_guard.bench.running import branch_lengths, memory_model  # noqa: PLC0415 - slow to import
    from lvlm_guard.cli import cost_tables  # noqa: PLC0415 - as above
    from lvlm_guard.host.stack import Stack  # noqa: PLC0415 - as above

    room = None if gpu is None else memory_model.Room.parse(gpu)
    targets = _choose_targets(hardware or [], bandwidth, tflops)
    strategies = Stack.of(stack)
    shape, config = _read_shape(model, image_tokens, dtype)
    branches = _read_branches(strategies, shape, config, model, prompt)
    predictions = _predict(shape, targets, branches, batch, prompt, tokens)
    weights = memory_model.estimate_weights(shape) if config is None else _measure_weights(config, shape)
    memories = _predict_memories(shape, weights, branches, batch, prompt, tokens)
    work = cost_tables.Work(
        model, stack, batch, prompt, shape.image_tokens, tokens, branches, branch_lengths.list_uncounted(strategies)
    )
    if as_json:
        figures = {**_describe(work, predictions, shape.value_bytes), "memory": _describe_memories(memories, room)}
        typer.echo(json.dumps(figures, indent=2))
        return
    cost_tables.show_predictions(work, predictions, Console())
    cost_tables.show_memories(memories, room, Console(), is_estimate=config is None)


def _choose_targets(names: list[str], bandwidth: float | None, tflops: float | None) -> list[Target]:
    from lvlm_guard.bench.running.cost_model import TARGETS, Target  # noqa: PLC0415 - slow to import

    for name in names:
        if name not in TARGETS:
            raise InputError(f"--hardware: no machine is called {name!r}.{nearest(name, TARGETS)}")
    if (bandwidth is None) != (tflops is None) or min(bandwidth or 1, tflops or 1) <= 0:
        raise InputError("--bandwidth and --tflops describe another machine together: give both, above 0, or neither.")
    targets = [TARGETS[name] for name in dict.fromkeys(names)]
    if bandwidth is not None and tflops is not None:
        targets.append(Target(f"{bandwidth:g} GB/s", bandwidth * 1e9, tflops * 1e12))
    return targets or list(TARGETS.values())


def _read_shape(model: str, image_tokens: int | None, dtype: str) -> tuple[Shape, Any]:
    """Return the sizes of a model, and its config where it has one."""
    from lvlm_guard.bench.running.shapes import SHAPES, Shape  # noqa: PLC0415 - slow to import

    if model.lower() in SHAPES:
        shape = SHAPES[model.lower()]
        size = VALUE_BYTES.get(dtype, shape.value_bytes)
        return dataclasses.replace(shape, image_tokens=image_tokens or shape.image_tokens, value_bytes=size), None
    config = loading.load_config(model)
    size = VALUE_BYTES[_dtype_of(model, config) if dtype == "auto" else dtype]
    return Shape.of(config, model, image_tokens=image_tokens, value_bytes=size), config


def _dtype_of(model: str, config: Any) -> str:
    """Return the dtype that a model is loaded in: the config's, bfloat16 where it names none; the bundled one has float32."""
    if model == loading.BUNDLED:
        return "float32"
    name = str(getattr(config, "dtype", None)).removeprefix("torch.")
    return name if name in VALUE_BYTES else "bfloat16"


def _read_branches(stack: Stack, shape: Shape, config: Any, model: str, prompt: int) -> tuple[BranchLength, ...]:
    """Read the branches of a stack; the tokenizer is loaded only where a strategy needs it."""
    from lvlm_guard.bench.running import branch_lengths, shapes  # noqa: PLC0415 - slow to import

    try:
        return branch_lengths.read_branches(stack, branch_lengths.sketch_request(shape, prompt, config))
    except ProcessorNeeded:
        if model.lower() in shapes.SHAPES:
            raise InputError(
                f"The stack puts text into prompts, and {model!r} is a shape without a tokenizer. Name a folder or a hub id."
            ) from None
    tokenizer = loading.load_tokenizer(model)
    return branch_lengths.read_branches(stack, branch_lengths.sketch_request(shape, prompt, config, tokenizer))


def _predict(
    shape: Shape, targets: list[Target], branches: tuple[BranchLength, ...], batch: int, prompt: int, tokens: int
) -> list[Prediction]:
    """Predict plain generate on every machine, then the branches in one batch and one after another."""
    from lvlm_guard.bench.running.cost_model import predict  # noqa: PLC0415 - slow to import

    return [
        predict(shape, target, extra, batch, prompt=prompt, generated=tokens / 2, batched=batched, padded=True)
        for target in targets
        for extra, batched in _list_ways(branches)
    ]


def _list_ways(branches: tuple[BranchLength, ...]) -> list[tuple[tuple[BranchLength, ...], bool]]:
    """Return branches and whether they are rows of one batch: none, all in one, one after another."""
    return [((), True), *([(branches, True), (branches, False)] if branches else [])]


def _measure_weights(config: Any, shape: Shape) -> int:
    names = {size: name for name, size in reversed(VALUE_BYTES.items())}
    return loading.measure_weights(config, names[shape.value_bytes])


def _predict_memories(
    shape: Shape, weights: int, branches: tuple[BranchLength, ...], batch: int, prompt: int, tokens: int
) -> list[Memory]:
    """Add up plain generate, then the branches in one batch and one after another."""
    from lvlm_guard.bench.running.memory_model import predict_memory  # noqa: PLC0415 - slow to import

    return [
        predict_memory(shape, weights, extra, batch, prompt=prompt, tokens=tokens, batched=batched)
        for extra, batched in _list_ways(branches)
    ]


def _describe_memories(memories: list[Memory], room: Room | None) -> list[dict[str, Any]]:
    figures = []
    for memory in memories:
        entry = {**dataclasses.asdict(memory), "total": memory.total}
        if room is not None:
            largest = memory.largest_batch(room.usable)
            entry |= {"room": room.usable, "fits": memory.total <= room.usable, "largest_batch": largest}
        figures.append(entry)
    return figures


def _describe(work: Any, predictions: list[Prediction], value_bytes: int) -> dict[str, Any]:
    """Return all figures as plain values."""
    figures = [
        {
            "hardware": prediction.target,
            "executor": prediction.executor,
            "first_ms": prediction.prefill_ms,
            "first_ratio": prediction.prefill_ratio,
            "token_ms": prediction.step_ms,
            "token_ratio": prediction.ratio,
            "answer_ms": prediction.answer_ms(work.tokens - 1),
            "answer_ratio": prediction.answer_ratio(work.tokens - 1),
        }
        for prediction in predictions
    ]
    return {**dataclasses.asdict(work), "value_bytes": value_bytes, "predictions": figures}
