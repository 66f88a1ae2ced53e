"""Models for the command line: the bundled one, a local folder, or a hub id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from lvlm_guard.errors import InputError

BUNDLED = "testbed"
DTYPES = {"auto": "auto", "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(name: str, device: str | None = None, dtype: str = "auto") -> tuple[Any, Any]:
    """Load a model and its processor; `testbed` is the bundled one.

    Raises:
        InputError: The folder or id cannot be loaded as a vision-language model, or the dtype is unknown.
    """
    transformers.logging.set_verbosity_error()  # the command line speaks for itself
    transformers.logging.disable_progress_bar()
    if dtype not in DTYPES:
        raise InputError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}.")
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if name == BUNDLED:
        from lvlm_guard import testbed  # noqa: PLC0415 - only when it is asked for

        return testbed.load(chosen)
    return _pretrained(name, chosen, DTYPES[dtype])


def _pretrained(name: str, device: str, dtype: Any) -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText, AutoProcessor  # noqa: PLC0415 - slow to import

    if Path(name).exists() and not (Path(name) / "config.json").is_file():
        raise InputError(f"{name} holds no config.json, so it is not a model folder.")
    try:
        model = AutoModelForImageTextToText.from_pretrained(name, dtype=dtype)
        processor = AutoProcessor.from_pretrained(name)
    except (OSError, ValueError, KeyError, ImportError) as error:
        first = str(error).strip().split("\n")[0]
        raise InputError(f"{name!r} cannot be loaded as a vision-language model: {first}") from None
    return model.to(device).eval(), processor
