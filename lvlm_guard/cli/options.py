"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, get_args

import typer

from lvlm_guard.loading import DeviceMapName, DtypeName, QuantizationName

DEFAULT_STACK = "vcd"
ExecutorName = Literal["auto", "batched", "sequential"]
ONE_STACK = "A strategy's name, several joined as in vcd+pai, or a .toml or .yaml file"

Model = Annotated[
    str, typer.Option(metavar="MODEL", help="A local folder, a hub id, or 'testbed' for the bundled model.")
]
Stack = Annotated[str, typer.Option(metavar="STACK", help=f"{ONE_STACK}.")]
Stacks = Annotated[list[str], typer.Option(metavar="STACK", help=f"{ONE_STACK}; repeat for several stacks.")]
Device = Annotated[
    str | None,
    typer.Option(metavar="DEVICE", help="cpu, cuda or cuda:N.", show_default="cuda if there, else cpu"),
]
Dtype = Annotated[DtypeName, typer.Option(metavar="DTYPE", help=f"{', '.join(get_args(DtypeName))}.")]
DeviceMap = Annotated[
    DeviceMapName | None,
    typer.Option(metavar="MAP", help=f"Spread the model over devices: {', '.join(get_args(DeviceMapName))}."),
]
Quantization = Annotated[
    QuantizationName | None,
    typer.Option("--quantize", metavar="BITS", help=f"{' or '.join(get_args(QuantizationName))}, by bitsandbytes."),
]
Executor = Annotated[ExecutorName, typer.Option(metavar="EXECUTOR", help=f"{', '.join(get_args(ExecutorName))}.")]
Allow = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FUNCTION", help="A function that stacks may name, package.module:function; repeat for several."
    ),
]
Calibration = Annotated[
    str | None,
    typer.Option(
        metavar="SUITE",
        help="Items to search on, with arguments; 'half' sets pictures of the suite aside.",
        show_default="the suite's calibration split",
    ),
]
Limit = Annotated[int | None, typer.Option(min=1, help="Most items, in whole pictures.")]
SuiteData = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Folder with the suites' files; nothing is downloaded.")
]
Batch = Annotated[int, typer.Option(min=1, help="Most prompts at once.")]


def split_words(text: str | None) -> list[str] | None:
    """Return the words of a list with commas; None where there is none."""
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]
