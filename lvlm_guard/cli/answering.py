"""`lvlm-guard generate`: the guarded answer to one prompt, on request beside the plain one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lvlm_guard import loading
from lvlm_guard.cli.options import DEFAULT_STACK, Allow, Device, Dtype, Executor, Model, Stack
from lvlm_guard.cli.questions import check_picture, check_placeholder, check_question, readable_model_errors
from lvlm_guard.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image
    from rich.columns import Columns

    from lvlm_guard.guard import Guard

ADVICE = " Try another picture, --prompt or --stack."


def generate(
    model: Model,
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="The question or instruction.")],
    image: Annotated[list[Path] | None, typer.Option(metavar="FILE", help="A picture; repeat for several.")] = None,
    stack: Stack = DEFAULT_STACK,
    allow: Allow = None,
    plain: Annotated[bool, typer.Option("--plain", help="Show the plain answer beside the guarded one.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length limit of the answer.")] = 128,
    device: Device = None,
    dtype: Dtype = "auto",
    executor: Executor = "auto",
    show_doubt: Annotated[
        bool,
        typer.Option(
            "--show-doubt",
            help="Mark doubtful words, once the model is asked about each word about the picture; not streamed.",
        ),
    ] = False,
    report: Annotated[bool, typer.Option("--report", help="Print the report of the call as JSON on stderr.")] = False,
) -> None:
    """Answer one prompt about pictures with a stack of strategies, streaming."""
    pictures = _check_request(prompt, image or [])
    if plain and show_doubt:
        raise InputError("--plain and --show-doubt cannot be combined. Leave one of them out.")
    guard = _build_guard(model, stack, allow, device, dtype, executor)
    check_placeholder(prompt, guard.processor)
    settings = {"max_new_tokens": max_new_tokens, "do_sample": False}
    with readable_model_errors(ADVICE):
        batch = guard.inputs(images=pictures, messages=_write_messages(prompt, pictures))
        if show_doubt:
            guard = _mark_doubts(guard, {**batch, **settings})
        elif plain:
            _stream_both(guard, {**batch, **settings})
        else:
            guard.generate(
                **batch, **settings, streamer=_build_streamer(guard, lambda text: typer.echo(text, nl=False))
            )
            typer.echo()
    if report:
        typer.echo(guard.report.to_json(), err=True)


def _check_request(prompt: str, pictures: list[Path]) -> list[Image]:
    """Return the pictures, and refuse what can be refused before torch is imported and a model loaded."""
    check_question(prompt)
    if not pictures:
        raise InputError("generate needs an image: add --image FILE, and repeat it for several.")
    return [check_picture(picture) for picture in pictures]


def _build_guard(
    model: str, stack: str, allow: list[str] | None, device: str | None, dtype: str, executor: Any
) -> Guard:
    """Read the stack, then load the model, and put both together."""
    loading.quieten()
    from lvlm_guard.fitting import check_chat_template  # noqa: PLC0415 - slow to import
    from lvlm_guard.guard import Guard  # noqa: PLC0415 - as above
    from lvlm_guard.host import stack as stacks  # noqa: PLC0415 - as above

    strategies = stacks.Stack.of(stack, allow=allow or ())
    loaded, processor = loading.load(model, device, dtype)
    check_chat_template(processor)
    return Guard(loaded, processor, strategies, executor=executor)


def _write_messages(prompt: str, pictures: list[Image]) -> list[dict[str, Any]]:
    content = [*({"type": "image"} for _ in pictures), {"type": "text", "text": prompt}]
    return [{"role": "user", "content": content}]


def _mark_doubts(guard: Guard, arguments: dict[str, Any]) -> Guard:
    """Print the answer with its doubtful words marked; return the guard that answered."""
    from rich.console import Console  # noqa: PLC0415 - only for this

    from lvlm_guard.cli.doubt_colours import colour_words, is_doubtful  # noqa: PLC0415 - as above
    from lvlm_guard.outputs import sequences  # noqa: PLC0415 - slow to import
    from lvlm_guard.strategy.names import strategy_name  # noqa: PLC0415 - as above

    strategies = [strategy for strategy in guard.stack if strategy_name(strategy) != "doubt"]
    marking = guard.using([*strategies, {"name": "doubt", "params": {"ask": True}}])
    output = marking.generate(**arguments)
    tokens = sequences(output)[0, marking.report.answer_start :]
    answer = guard.processor.tokenizer.decode(tokens, skip_special_tokens=True)
    doubts = marking.report.results["doubt"][0]
    spans = [((word["start"], word["end"]), word["doubt"], is_doubtful(word)) for word in doubts["words"]]
    console = Console(highlight=False)
    if answer.split() != doubts["text"].split():
        console.print(answer, markup=False)
        console.print("Doubts are of what was said before it was revised:", style="dim")
    console.print(colour_words(doubts["text"], spans))
    if doubts["not_asked"]:
        console.print(f"Not all words were asked about: {doubts['not_asked']}", style="dim", markup=False)
    return marking


def _build_streamer(guard: Guard, write: Callable[[str], None]) -> Any:
    """Return a streamer that hands every finished piece of text to a function."""
    from transformers import TextStreamer  # noqa: PLC0415 - slow to import

    streamer = TextStreamer(guard.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    streamer.on_finalized_text = lambda text, stream_end=False: write(text)  # noqa: ARG005 - the base's signature
    return streamer


def _stream_both(guard: Guard, arguments: dict[str, Any]) -> None:
    """Stream the plain answer into the left panel, then the guarded one into the right."""
    from rich.console import Console  # noqa: PLC0415 - only for this
    from rich.live import Live  # noqa: PLC0415 - as above

    titles = ("plain", " + ".join(guard.stack.names) or "plain")
    answers = ["", ""]
    with Live(_build_panels(titles, answers), console=Console(), refresh_per_second=12) as live:
        for index, generate_answer in enumerate((guard.model.generate, guard.generate)):

            def write(text: str, index: int = index) -> None:
                answers[index] += text
                live.update(_build_panels(titles, answers))

            generate_answer(**arguments, streamer=_build_streamer(guard, write))


def _build_panels(titles: tuple[str, str], answers: list[str]) -> Columns:
    from rich.columns import Columns  # noqa: PLC0415 - only for this
    from rich.panel import Panel  # noqa: PLC0415 - as above
    from rich.text import Text  # noqa: PLC0415 - as above

    panels = (Panel(Text(answer), title=Text(title)) for title, answer in zip(titles, answers, strict=True))
    return Columns(panels, equal=True, expand=True)
