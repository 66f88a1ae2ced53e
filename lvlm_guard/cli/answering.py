"""`lvlm-guard generate`: the guarded answer to one prompt, on request beside the plain one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich.columns import Columns
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from transformers import TextStreamer

from lvlm_guard import loading
from lvlm_guard.cli.options import Allow, Device, Dtype
from lvlm_guard.forward.executors.executor import ExecutorName
from lvlm_guard.guard import DEFAULT_STACK, Guard
from lvlm_guard.host.stack import Stack


class CallbackStreamer(TextStreamer):  # type: ignore[misc,unused-ignore]
    """A streamer that hands every finished piece of text to a function."""

    def __init__(self, tokenizer: Any, write: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._write = write

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:  # noqa: ARG002 - the base's signature
        """Pass the text on."""
        self._write(text)


def generate(
    model: Annotated[
        str, typer.Option(metavar="MODEL", help="A local folder, a hub id, or 'testbed' for the bundled model.")
    ],
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="The question or instruction.")],
    image: Annotated[list[Path] | None, typer.Option(metavar="FILE", help="A picture; repeat for several.")] = None,
    stack: Annotated[
        str, typer.Option(metavar="STACK", help="A strategy's name, names joined by +, or a .toml or .yaml file.")
    ] = DEFAULT_STACK,
    allow: Allow = None,
    plain: Annotated[bool, typer.Option("--plain", help="Show the plain answer beside the guarded one.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length limit of the answer.")] = 128,
    device: Device = None,
    dtype: Dtype = "auto",
    executor: Annotated[
        ExecutorName, typer.Option(metavar="EXECUTOR", help=f"{', '.join(get_args(ExecutorName))}.")
    ] = "auto",
    report: Annotated[bool, typer.Option("--report", help="Print the report of the call as JSON on stderr.")] = False,
) -> None:
    """Answer one prompt about pictures with a stack of strategies, streaming."""
    strategies = Stack.of(stack, allow=allow or ())
    loaded, processor = loading.load(model, device, dtype)
    guard = Guard(loaded, processor, strategies, executor=executor)
    content = [*({"type": "image"} for _ in image or ()), {"type": "text", "text": prompt}]
    batch = guard.inputs(images=list(image or ()), messages=[{"role": "user", "content": content}])
    settings = {"max_new_tokens": max_new_tokens, "do_sample": False}
    if plain:
        _stream_both(loaded, guard, processor, {**batch, **settings})
    else:
        streamer = CallbackStreamer(processor.tokenizer, lambda text: typer.echo(text, nl=False))
        guard.generate(**batch, **settings, streamer=streamer)
        typer.echo()
    if report:
        typer.echo(guard.report.to_json(), err=True)


def _stream_both(model: Any, guard: Guard, processor: Any, arguments: dict[str, Any]) -> None:
    """Stream the plain answer into the left panel, then the guarded one into the right."""
    titles = ("plain", " + ".join(guard.stack.names) or "plain")
    answers = ["", ""]
    with Live(_build_panels(titles, answers), console=Console(), refresh_per_second=12) as live:
        for index, generate_answer in enumerate((model.generate, guard.generate)):

            def write(text: str, index: int = index) -> None:
                answers[index] += text
                live.update(_build_panels(titles, answers))

            generate_answer(**arguments, streamer=CallbackStreamer(processor.tokenizer, write))


def _build_panels(titles: tuple[str, str], answers: list[str]) -> Columns:
    panels = (Panel(answer, title=title) for title, answer in zip(titles, answers, strict=True))
    return Columns(panels, equal=True, expand=True)
