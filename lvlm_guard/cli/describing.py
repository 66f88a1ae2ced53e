"""`lvlm-guard strategies`: list the installed strategies, or describe one."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console


def complete_name(incomplete: str) -> list[str]:
    """Return the names of the strategies that start with `incomplete`, for completion in the shell."""
    from lvlm_guard.host.plugins import catalogue  # noqa: PLC0415 - slow to import

    return [offer.name for offer in catalogue() if offer.name.startswith(incomplete)]


def strategies(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="The strategy to describe.", autocompletion=complete_name),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """List the installed strategies, or describe the one called NAME."""
    from lvlm_guard.cli import listing  # noqa: PLC0415 - slow to import
    from lvlm_guard.host import plugins  # noqa: PLC0415 - as above

    catalogue = plugins.catalogue()
    if name is None:
        described = [offer.describe() for offer in catalogue]
        if not as_json:
            listing.print_list(described, Console(highlight=False))
            return
        typer.echo(json.dumps(described, indent=2))
        return
    catalogue.find(name)
    description = catalogue.offers[name].describe()
    if as_json:
        typer.echo(json.dumps(description, indent=2))
    else:
        listing.print_card(description, Console(highlight=False))
