"""Models for the command line: the bundled one, a local folder, or a hub id."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
import transformers

from lvlm_guard.errors import InputError

BUNDLED = "testbed"
DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
DTYPES: dict[DtypeName, Any] = {
    "auto": "auto", "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16,
}  # fmt: skip


def load(name: str, device: str | None = None, dtype: str = "auto") -> tuple[Any, Any]:
    """Load a model and its processor; `testbed` is the bundled one.

    Args:
        name: A local folder, a hub id, or `testbed`.
        device: What torch calls the device; None is the GPU if there is one, else the CPU.
        dtype: A key of `DTYPES`; `auto` keeps that of the checkpoint. The bundled model keeps its own.

    Raises:
        InputError: The folder or id cannot be loaded as a vision-language model, the dtype is unknown, or this machine
            has no such device.
    """
    quieten()
    if dtype not in DTYPES:
        raise InputError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}.")
    place = _choose_device(device)
    if name == BUNDLED:
        from lvlm_guard import testbed  # noqa: PLC0415 - slow to import

        return testbed.load(place)
    return _load_pretrained(name, place, DTYPES[dtype])


def load_config(name: str) -> Any:
    """Read the config of a model without its weights: of `testbed`, a local folder or a hub id.

    Raises:
        InputError: There is no such folder, or its config cannot be read.
    """
    return _read("AutoConfig", name, "config")


def load_tokenizer(name: str) -> Any:
    """Load the tokenizer of a model without its weights.

    Raises:
        InputError: The folder or id has no tokenizer that can be loaded.
    """
    tokenizer = _read("AutoTokenizer", name, "tokenizer")
    # transformers makes a tokenizer without words where a folder holds a config and no tokenizer.
    if not tokenizer("a", add_special_tokens=False)["input_ids"]:
        raise InputError(f"The tokenizer of {name!r} has no vocabulary: its files are not there. Get them again.")
    return tokenizer


def _read(reader: str, name: str, kind: str) -> Any:
    from lvlm_guard.testbed.model import WEIGHTS  # noqa: PLC0415 - slow to import

    quieten()
    _check_folder(name)
    try:
        return getattr(transformers, reader).from_pretrained(WEIGHTS if name == BUNDLED else name)
    except MemoryError:
        raise
    except Exception as error:
        # The files come from elsewhere, as below.
        raise InputError(f"The {kind} of {name!r} cannot be loaded: {_summarise(error)}") from error


def quieten() -> None:
    """Switch off the progress bars and warnings of transformers."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def _choose_device(name: str | None) -> str:
    """Return the name of the device to load on, checked; without a name the GPU if there is one, else the CPU."""
    if not name:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        count = torch.get_device_module(device).device_count()
    except RuntimeError as error:
        raise InputError(f"{name!r} is no device that torch can use here. Choose cpu, cuda or cuda:N.") from error
    if device.type != "cpu" and (device.index or 0) >= count:
        raise InputError(
            f"there is no device {name!r}: torch finds {count} of kind {device.type}. Choose another, or cpu."
        )
    return name


def _load_pretrained(name: str, device: str, dtype: Any) -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText, AutoProcessor  # noqa: PLC0415 - slow to import

    from lvlm_guard import testbed  # noqa: F401, PLC0415 - registers the processors of trained testbeds

    _check_folder(name)
    try:
        model, details = AutoModelForImageTextToText.from_pretrained(name, dtype=dtype, output_loading_info=True)
        processor = AutoProcessor.from_pretrained(name)
    except MemoryError:
        raise
    except Exception as error:
        # The files come from elsewhere: whatever their readers raise, from a missing file to a torn archive, ends here.
        reason = _summarise(error)
        raise InputError(f"{name!r} cannot be loaded as a vision-language model: {reason}") from error
    _check_weights(name, sorted(details["missing_keys"]))
    if not hasattr(processor, "image_processor"):
        raise InputError(f"{name!r} cannot be loaded as a vision-language model: its processor takes no images.")
    return model.to(device).eval(), processor


def _check_folder(name: str) -> None:
    if name.startswith((".", "/", "~")) and not Path(name).exists():
        raise InputError(f"there is no folder {name}.")
    if Path(name).exists() and not (Path(name) / "config.json").is_file():
        raise InputError(f"{name} holds no config.json, so it is not a model folder.")


def _check_weights(name: str, missing: list[str]) -> None:
    if missing:
        raise InputError(
            f"{name!r} has no weights for {', '.join(missing[:3])} ({len(missing)} in all), so it would answer at "
            "random. Get its files again."
        )


def _summarise(error: Exception) -> str:
    """Return the first line of a loader's message; the lists of all models that follow it are left out."""
    return str(error).strip().split("\n")[0] or type(error).__name__
