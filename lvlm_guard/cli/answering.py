"""`lvlm-guard generate`: one prompt, guarded, and plain beside it when asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.columns import Columns
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from transformers import TextStreamer

from lvlm_guard import loading
from lvlm_guard.guard import DEFAULT_STACK, Guard


class Tell(TextStreamer):  # type: ignore[misc,unused-ignore]
    """A streamer that hands every finished piece of text to a function."""

    def __init__(self, tokenizer: Any, tell: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._tell = tell

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:  # noqa: ARG002 - the base's signature
        """Pass the text on."""
        self._tell(text)


def generate(
    model: Annotated[str, typer.Option(help="A local folder, a hub id, or 'testbed' for the bundled model.")],
    prompt: Annotated[str, typer.Option(help="What to ask.")],
    image: Annotated[list[Path] | None, typer.Option(help="A picture; repeat for several.")] = None,
    stack: Annotated[str, typer.Option(help="A strategy's name or a .toml, .yaml file.")] = DEFAULT_STACK,
    plain: Annotated[bool, typer.Option("--plain", help="Show the plain answer beside the guarded one.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length limit of the answer.")] = 128,
    device: Annotated[str | None, typer.Option(help="Where to run; default: cuda if there, else cpu.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    executor: Annotated[str, typer.Option(help="auto, batched or sequential.")] = "auto",
    report: Annotated[bool, typer.Option("--report", help="Print the report of the call as JSON on stderr.")] = False,
) -> None:
    """Answer a PROMPT about pictures with a stack of strategies, streaming."""
    loaded, processor = loading.load(model, device, dtype)
    guard = Guard(loaded, processor, stack, executor=executor)  # type: ignore[arg-type]
    content = [*({"type": "image"} for _ in image or ()), {"type": "text", "text": prompt}]
    batch = guard.inputs(images=list(image or ()), messages=[{"role": "user", "content": content}])
    settings = {"max_new_tokens": max_new_tokens, "do_sample": False}
    if plain:
        _side_by_side(loaded, guard, processor, {**batch, **settings})
    else:
        guard.generate(**batch, **settings, streamer=_to_stdout(processor))
        typer.echo()
    if report:
        typer.echo(guard.report.to_json(), err=True)


def _to_stdout(processor: Any) -> Tell:
    return Tell(processor.tokenizer, lambda text: typer.echo(text, nl=False))


def _side_by_side(model: Any, guard: Guard, processor: Any, arguments: dict[str, Any]) -> None:
    """Stream the plain answer into the left panel, then the guarded one into the right."""
    titles = ("plain", " + ".join(guard.stack.names) or "plain")
    answers = ["", ""]
    with Live(_panels(titles, answers), console=Console(), refresh_per_second=12) as live:
        for index, call in enumerate((model.generate, guard.generate)):

            def tell(text: str, index: int = index) -> None:
                answers[index] += text
                live.update(_panels(titles, answers))

            call(**arguments, streamer=Tell(processor.tokenizer, tell))


def _panels(titles: tuple[str, str], answers: list[str]) -> Columns:
    panels = (Panel(answer, title=title) for title, answer in zip(titles, answers, strict=True))
    return Columns(panels, equal=True, expand=True)
