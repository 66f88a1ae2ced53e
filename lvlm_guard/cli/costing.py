"""`lvlm-guard bench cost`: what stacks cost, measured beside plain generate in the same run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import numpy as np
import torch
import typer
from PIL import Image
from rich.console import Console

from lvlm_guard import loading
from lvlm_guard.cli.options import Device, Dtype
from lvlm_guard.errors import InputError
from lvlm_guard.forward.executors.executor import ExecutorName
from lvlm_guard.guard import Guard
from lvlm_guard.request import picture_loading

if TYPE_CHECKING:
    from lvlm_guard.bench.running.cost import Cost
    from lvlm_guard.host.stack import Stack

PROMPT = "Describe this image."
SIDE = 336


def cost(
    stack: Annotated[
        list[str],
        typer.Option(metavar="STACK", help="A strategy's name, or a .toml or .yaml file; repeat for several."),
    ],
    model: Annotated[
        str, typer.Option(metavar="MODEL", help="A local folder, a hub id, or 'testbed' for the bundled model.")
    ] = loading.BUNDLED,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of every answer.")] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="Measured calls of each way.")] = 5,
    batch: Annotated[int, typer.Option(min=1, help="Prompts at once.")] = 1,
    image: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The picture of all prompts.", show_default="noise, different for each"),
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=1, help="Side of the noise pictures in pixels.", show_default="the model's own")
    ] = None,
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="The question or instruction.")] = PROMPT,
    executor: Annotated[
        ExecutorName, typer.Option(metavar="EXECUTOR", help=f"{', '.join(get_args(ExecutorName))}.")
    ] = "auto",
    device: Device = None,
    dtype: Dtype = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Measure what stacks cost beside plain generate: time, forwards and memory, greedily, on the same prompts.

    Stacks and plain generate take turns, so that a machine that slows down slows all of them. `lvlm-guard plan`
    predicts the same from sizes alone.
    """
    loading.quieten()
    from lvlm_guard.bench.running import runner, systems  # noqa: PLC0415 - slow to import
    from lvlm_guard.cli import cost_tables  # noqa: PLC0415 - as above

    stacks = systems.read_stacks(stack)
    picture = None if image is None else _read_picture(image)
    loaded, processor = loading.load(model, device, dtype)
    pictures = [picture] * batch if picture is not None else _draw_noise(size or _side_of(loaded.config), batch)
    with runner.one_thread_if_small(loaded):
        costs = _measure(loaded, processor, stacks, pictures, prompt, executor, tokens, rounds)
    if as_json:
        typer.echo(json.dumps(_describe(costs, model, batch, loaded.device.type), indent=2))
        return
    cost_tables.show_costs(costs, f"{model} on {loaded.device.type}, {batch} prompts, {tokens} tokens", Console())


def _read_picture(path: Path) -> Image.Image:
    try:
        return picture_loading.read_picture(path)
    except InputError as error:
        raise InputError(f"--image: {error}") from None


def _side_of(config: Any) -> int:
    """Return the side in pixels of the pictures a model was trained on, 336 where its config names none."""
    side = getattr(getattr(config, "vision_config", None), "image_size", None)
    return side if isinstance(side, int) else SIDE


def _draw_noise(side: int, count: int) -> list[Image.Image]:
    draws = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    return [Image.fromarray(draw) for draw in draws]


def _measure(
    model: Any,
    processor: Any,
    stacks: dict[str, Stack],
    pictures: list[Image.Image],
    prompt: str,
    executor: ExecutorName,
    tokens: int,
    rounds: int,
) -> dict[str, Cost]:
    from lvlm_guard.bench.running.cost import PLAIN, measure_costs  # noqa: PLC0415 - slow to import

    if PLAIN in stacks:
        raise InputError(f"{PLAIN!r} is what stacks are measured against. Rename that stack file.")
    guards = {name: Guard(model, processor, strategies, executor=executor) for name, strategies in stacks.items()}
    text = {"type": "text", "text": prompt}
    messages = [[{"role": "user", "content": [{"type": "image", "image": picture}, text]}] for picture in pictures]
    # Every guard remembers the pictures behind inputs, so each makes the inputs itself; all of them are equal.
    batches = [guard.inputs(messages=messages) for guard in guards.values()]
    _check_answers(model, batches[0])
    ways = {PLAIN: model.generate, **{name: guard.generate for name, guard in guards.items()}}
    try:
        return measure_costs(ways, batches[:1], new_tokens=tokens, rounds=rounds)
    except torch.cuda.OutOfMemoryError as error:
        raise InputError(
            f"The memory is too small for {len(pictures)} prompts at once. Use a smaller --batch."
        ) from error


def _check_answers(model: Any, batch: Any) -> None:
    """Refuse prompts and pictures that the model itself cannot take."""
    try:
        model.generate(**batch, max_new_tokens=1, do_sample=False)
    except ValueError as error:
        raise InputError(
            f"Plain generate cannot answer these prompts: {error} Name another --image, or another --size."
        ) from error


def _describe(costs: dict[str, Cost], model: str, batch: int, device: str) -> dict[str, Any]:
    """Return all figures as plain values; times are the 20th, 50th and 80th percentile."""
    figures = [dataclasses.asdict(measured) for measured in costs.values()]
    return {"model": model, "device": device, "batch": batch, "costs": figures}
