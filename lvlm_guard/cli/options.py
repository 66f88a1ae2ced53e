"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated, get_args

import typer

from lvlm_guard import loading

Device = Annotated[
    str | None,
    typer.Option(metavar="DEVICE", help="cpu, cuda or cuda:N.", show_default="cuda if there, else cpu"),
]
Dtype = Annotated[loading.DtypeName, typer.Option(metavar="DTYPE", help=f"{', '.join(get_args(loading.DtypeName))}.")]
Allow = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FUNCTION", help="A function that stacks may name, package.module:function; repeat for several."
    ),
]
