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
    quieten()
    if dtype not in DTYPES:
        raise InputError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}.")
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if name == BUNDLED:
        from lvlm_guard import testbed  # noqa: PLC0415 - only when it is asked for

        return testbed.load(chosen)
    return _pretrained(name, chosen, DTYPES[dtype])


def quieten() -> None:
    """Let the command line speak for itself."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def _pretrained(name: str, device: str, dtype: Any) -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText, AutoProcessor  # noqa: PLC0415 - slow to import

    from lvlm_guard import testbed  # noqa: F401, PLC0415 - lets transformers know the processors of trained testbeds

    if name.startswith((".", "/", "~")) and not Path(name).exists():
        raise InputError(f"there is no folder {name}.")
    if Path(name).exists() and not (Path(name) / "config.json").is_file():
        raise InputError(f"{name} holds no config.json, so it is not a model folder.")
    try:
        model, loaded = AutoModelForImageTextToText.from_pretrained(name, dtype=dtype, output_loading_info=True)
        processor = AutoProcessor.from_pretrained(name)
    except MemoryError:
        raise
    except Exception as error:
        # Files of others: whatever their readers stumble over, from a missing file to a torn archive, ends up here.
        raise InputError(f"{name!r} cannot be loaded as a vision-language model: {_reason(error)}") from error
    untrained = sorted(loaded["missing_keys"])
    if untrained:
        raise InputError(
            f"{name!r} has no weights for {', '.join(untrained[:3])} ({len(untrained)} in all), so it would answer at "
            "random. Get its files again."
        )
    if not hasattr(processor, "image_processor"):
        raise InputError(f"{name!r} cannot be loaded as a vision-language model: its processor takes no images.")
    return model.to(device).eval(), processor


def _reason(error: Exception) -> str:
    """The first line of what a loader said; lists of every model there is are left out."""
    return str(error).strip().split("\n")[0] or type(error).__name__
