"""What all commands of `lvlm-guard` have in common: how they are read, and how they end."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperCommand, TyperGroup

from lvlm_guard.errors import GuardError, shorten

USAGE_ERROR = 2
INTERRUPTED = 130
LONGEST_REASON = 400


class Command(TyperCommand):
    """A command that refuses an option with one value that stands there twice, and one whose value is the next option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the arguments; refuse repeated options, options in place of values, and characters that no argument can have."""
        if any("\0" in text for text in args):
            raise typer.BadParameter("it holds a NUL character, which no argument of a program can.", ctx=ctx)
        if not ctx.resilient_parsing:
            values, _, order = self.make_parser(ctx).parse_args(args=list(args))
            parameters: list[Any] = list(order)
            names = {name for parameter in self.get_params(ctx) for name in parameter.opts}
            for option in parameters:
                if option.param_type_name == "option" and _swallows(values.get(option.name), names):
                    raise typer.BadParameter(
                        "its value is missing: what follows it is an option.", ctx=ctx, param=option
                    )
            for option in dict.fromkeys(parameters):
                if parameters.count(option) > 1 and _takes_one_value(option):
                    raise typer.BadParameter(_explain_repetition(option), ctx=ctx, param=option)
        return super().parse_args(ctx, args)


def _swallows(value: Any, names: set[str]) -> bool:
    """Whether the value that was read for an option is the name of another one."""
    values = value if isinstance(value, (list, tuple)) else [value]
    return any(isinstance(entry, str) and entry in names for entry in values)


def _takes_one_value(option: Any) -> bool:
    """Whether a second value would silently replace the first; a switch says the same however often it is written."""
    switch = getattr(option, "is_flag", False)
    return option.param_type_name == "option" and not (switch or option.multiple or getattr(option, "count", False))


def _explain_repetition(option: Any) -> str:
    if option.name == "stack":
        return "it takes one stack. Join strategies with a plus, such as --stack vcd+pai, or name a stack file."
    return "it takes one value, and is repeated. Leave one of them out."


class Group(TyperGroup):
    """A group of commands that an interrupt ends with one line and the exit code of a shell, 130."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo("\nInterrupted.", err=True)
            raise typer.Exit(INTERRUPTED) from None


class Program(typer.Typer):
    """A program or group whose commands are all read by `Command`."""

    def command(self, name: str | None = None, *, cls: type[TyperCommand] | None = Command, **settings: Any) -> Any:
        """Return the decorator that adds a function as a command."""
        return super().command(name, cls=cls, **settings)


@contextmanager
def readable_endings() -> Iterator[None]:
    """Print what the library refuses or the system denies as a message, and exit with code 2; no text is too odd to print."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        yield
    except GuardError as error:
        _fail(type(error).__name__, str(error))
    except MemoryError:
        _fail("MemoryError", "the memory of this machine is too small for that. Use a smaller model, picture or batch.")
    except OSError as error:
        place = "" if error.filename is None else f"{error.filename}: "
        _fail(type(error).__name__, f"{place}{error.strerror or shorten(str(error), LONGEST_REASON)}.")


def _fail(kind: str, message: str) -> None:
    Console(stderr=True).print(f"[bold red]{kind}:[/] {escape(message)}", highlight=False, soft_wrap=True)
    sys.exit(USAGE_ERROR)
