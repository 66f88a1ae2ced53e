"""Models for the command line: the bundled one, a local folder, or a hub id."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from lvlm_guard.dtype_speed import times_slower
from lvlm_guard.errors import GuardWarning, InputError, nearest, quote, shorten
from lvlm_guard.files import exists, is_file, is_folder
from lvlm_guard.user_warnings import warn_user

# torch and transformers take seconds to import, so they are imported where they are used: help and completion need neither.

BUNDLED = "testbed"
DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
DTYPES: tuple[DtypeName, ...] = get_args(DtypeName)
DeviceMapName = Literal["auto", "balanced", "balanced_low_0", "sequential"]
QuantizationName = Literal["8bit", "4bit"]
LONGEST_REASON = 400
_MUCH_SLOWER = 3.0
"""From how many times longer a CPU takes in a model's dtype than in float32 that is said."""


@dataclass(frozen=True)
class Placement:
    """How the weights of a checkpoint lie on devices; by default on one of them, as they are.

    Args:
        device_map: How transformers spreads them over several devices, and the CPU where those are full.
        quantization: Bits of a weight, by bitsandbytes.
        processes: That share out the matrices of the model, started by torchrun; not together with the others.

    Raises:
        InputError: A package that it takes is not installed, or it is a contradiction.
    """

    device_map: DeviceMapName | None = None
    quantization: QuantizationName | None = None
    processes: int = 1

    def __post_init__(self) -> None:
        needs = {"accelerate": self.device_map or self.quantization, "bitsandbytes": self.quantization}
        for package, choice in needs.items():
            if choice is not None and importlib.util.find_spec(package) is None:
                raise InputError(f"{choice} needs {package}: pip install {package}.")
        if self.processes > 1 and any(needs.values()):
            raise InputError("Sharing a model among processes goes with neither a device map nor quantisation.")

    @property
    def is_plain(self) -> bool:
        """Whether all weights are on one device, as they are."""
        return self == ON_ONE_DEVICE

    def build_arguments(self) -> dict[str, Any]:
        """Return what `from_pretrained` takes for it."""
        from transformers import BitsAndBytesConfig  # noqa: PLC0415 - slow to import

        if self.is_plain:
            return {}
        if self.processes > 1:
            return {"tp_plan": "auto"}
        arguments: dict[str, Any] = {"device_map": self.device_map or "auto"}
        if self.quantization is not None:
            arguments["quantization_config"] = BitsAndBytesConfig(**{f"load_in_{self.quantization}": True})
        return arguments


ON_ONE_DEVICE = Placement()


def load(
    name: str, device: str | None = None, dtype: str = "auto", placement: Placement = ON_ONE_DEVICE
) -> tuple[Any, Any]:
    """Load a model and its processor; `testbed` is the bundled one.

    Args:
        name: A local folder, a hub id, or `testbed`.
        device: What torch calls the device; None is the GPU if there is one, else the CPU.
        dtype: A key of `DTYPES`; `auto` keeps that of the checkpoint. The bundled model keeps its own.
        placement: Over which devices, and in how many bits; not together with a device, nor for the bundled model.

    Raises:
        InputError: The folder or id cannot be loaded as a vision-language model, the dtype is unknown, this machine has no
            such device, or it cannot be placed so.
    """
    quieten()
    if dtype not in DTYPES:
        raise InputError(f"dtype must be one of {', '.join(DTYPES)}, got {quote(dtype)}.{nearest(dtype, DTYPES)}")
    _check_name(name)
    _check_placement(name, device, placement)
    place = _choose_device(device)
    _check_dtype(place, dtype)
    if name == BUNDLED:
        from lvlm_guard import testbed  # noqa: PLC0415 - slow to import

        return testbed.load(place)
    return _load_pretrained(name, place, dtype, placement)


def _check_placement(name: str, device: str | None, placement: Placement) -> None:
    if placement.is_plain:
        return
    if name == BUNDLED:
        raise InputError("The bundled model is small: it lies on one device, and is not quantised. Choose --device.")
    if device is not None:
        raise InputError(
            f"The device {quote(device)} and how the model is spread both say where weights lie. Leave out one."
        )


def load_config(name: str) -> Any:
    """Read the config of a model without its weights: of `testbed`, a local folder or a hub id.

    Raises:
        InputError: There is no such folder, or its config cannot be read.
    """
    return _read("AutoConfig", name, "config")


def load_config_values(name: str) -> dict[str, Any]:
    """Read what `config.json` holds: of `testbed`, a local folder or a hub id, whether its class is known or not.

    Raises:
        InputError: There is no such folder, or its config cannot be read.
    """
    from transformers import PretrainedConfig  # noqa: PLC0415 - slow to import

    quieten()
    _check_name(name)
    try:
        values, _ = PretrainedConfig.get_config_dict(resolve(name))
    except MemoryError:
        raise
    except Exception as error:
        # The files come from elsewhere, as below.
        raise InputError(f"The config of {quote(name)} cannot be read: {_summarise(error)}{_advise(name)}") from error
    if not isinstance(values, dict) or not isinstance(values.get("model_type"), str):
        raise InputError(f"The config of {quote(name)} names no model_type, so it is not a model's config.json.")
    return values


def measure_weights(config: Any, dtype: str) -> int:
    """Return the bytes of all weights and buffers of a model by its config alone; none of them is made.

    Args:
        config: Of a vision-language model.
        dtype: float32, bfloat16 or float16.

    Raises:
        InputError: transformers cannot build a vision-language model of it.
    """
    import torch  # noqa: PLC0415 - slow to import
    from transformers import AutoModelForImageTextToText  # noqa: PLC0415 - as above

    try:
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config, dtype=getattr(torch, dtype))
    except (ValueError, TypeError, AttributeError, KeyError, ImportError, RuntimeError) as error:
        raise InputError(f"No model of kind {config.model_type} can be built: {_summarise(error)}") from error
    return sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))


def find_file(name: str, file: str) -> Path | None:
    """Return a file of a model, fetched from the hub where `name` is an id; None where it has no such file.

    Raises:
        InputError: There is no such model.
    """
    from transformers.utils import cached_file  # noqa: PLC0415 - slow to import

    _check_name(name)
    if is_folder(folder := Path(resolve(name))):
        return folder / file if is_file(folder / file) else None
    lenient = {
        "_raise_exceptions_for_gated_repo": False,
        "_raise_exceptions_for_missing_entries": False,
        "_raise_exceptions_for_connection_errors": False,
    }
    try:
        path = cached_file(name, file, **lenient)
    except (OSError, ValueError) as error:
        raise InputError(f"{file} of {quote(name)} cannot be read: {_summarise(error)}{_advise(name)}") from error
    return None if path is None else Path(path)


def resolve(name: str) -> str:
    """Return the folder of the bundled model, and any other name as it is."""
    from lvlm_guard.testbed.model import WEIGHTS  # noqa: PLC0415 - slow to import

    return str(WEIGHTS) if name == BUNDLED else name


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
    import transformers  # noqa: PLC0415 - slow to import

    quieten()
    _check_name(name)
    try:
        return getattr(transformers, reader).from_pretrained(resolve(name))
    except MemoryError:
        raise
    except Exception as error:
        # The files come from elsewhere, as below.
        raise InputError(f"The {kind} of {quote(name)} cannot be loaded: {_summarise(error)}{_advise(name)}") from error


def quieten() -> None:
    """Switch off the progress bars and warnings of transformers."""
    import transformers  # noqa: PLC0415 - slow to import

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def _choose_device(name: str | None) -> str:
    """Return the name of the device to load on, checked; without a name the GPU if there is one, else the CPU."""
    import torch  # noqa: PLC0415 - slow to import

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        count = torch.get_device_module(device).device_count()
    except (RuntimeError, ValueError, OverflowError) as error:
        raise InputError(f"{quote(name)} is no device that torch can use here. Choose cpu, cuda or cuda:N.") from error
    if (device.index or 0) >= max(count, int(device.type == "cpu")):
        raise InputError(
            f"there is no device {quote(name)}: torch finds {count} of kind {device.type}. Choose another, or cpu."
        )
    return name


def _check_dtype(device: str, dtype: str) -> None:
    """Multiply two numbers on the device, which some devices cannot in every dtype."""
    import torch  # noqa: PLC0415 - slow to import

    if dtype == "auto":
        return
    try:
        numbers = torch.ones(1, 1, dtype=getattr(torch, dtype), device=device)
        torch.matmul(numbers, numbers)
    except (RuntimeError, TypeError, AssertionError) as error:
        raise InputError(f"{device} cannot compute in {dtype}: {_summarise(error)} Choose float32.") from error


def _load_pretrained(name: str, device: str, dtype: str, placement: Placement) -> tuple[Any, Any]:
    import torch  # noqa: PLC0415 - slow to import
    from transformers import AutoModelForImageTextToText, AutoProcessor  # noqa: PLC0415 - as above

    from lvlm_guard import testbed  # noqa: F401, PLC0415 - registers the processors of trained testbeds

    kind = dtype if dtype == "auto" else getattr(torch, dtype)
    try:
        model, details = AutoModelForImageTextToText.from_pretrained(
            name, dtype=kind, output_loading_info=True, **placement.build_arguments()
        )
        processor = AutoProcessor.from_pretrained(name)
    except MemoryError:
        raise
    except Exception as error:
        # The files come from elsewhere: whatever their readers raise, from a missing file to a torn archive, ends here.
        reason = _summarise(error) + _advise(name)
        raise InputError(f"{quote(name)} cannot be loaded as a vision-language model: {reason}") from error
    _check_weights(name, sorted(details["missing_keys"]))
    _check_heads(name, model.config.get_text_config(), placement.processes)
    _check_processor(name, processor, model.config)
    _check_preparation(name)
    model = (model.to(device) if placement.is_plain else model).eval()
    _warn_of_slow_dtype(model)
    return model, processor


def _warn_of_slow_dtype(model: Any) -> None:
    """Warn where a model lies on a CPU in a dtype that the CPU has no instructions for."""
    import torch  # noqa: PLC0415 - slow to import

    if model.device.type != "cpu" or model.dtype not in (torch.bfloat16, torch.float16):
        return
    factor = times_slower(model.dtype)
    if factor > _MUCH_SLOWER:
        name = str(model.dtype).removeprefix("torch.")
        warn_user(
            f"This CPU multiplies about {factor:.0f} times slower in {name}, the model's dtype, than in float32. Load it with "
            "dtype float32 (--dtype float32) where twice the memory is there.",
            GuardWarning,
        )


def _check_name(name: str) -> None:
    """Refuse a name that is no folder of a model and cannot be a hub id."""
    if not name.strip() or "\0" in name:
        raise InputError(f"{quote(name)} names no model. Name a local folder, a hub id, or {BUNDLED!r}.")
    if name == BUNDLED:
        return
    if name.startswith((".", "/", "~")) and not exists(name):
        raise InputError(f"there is no folder {quote(name)}.")
    if name.lower() == BUNDLED and not exists(name):
        raise InputError(f"no model is called {name!r}. Did you mean {BUNDLED!r}?")
    if exists(name) and not is_folder(name):
        raise InputError(f"{quote(name)} is a file. Name the folder that holds it, with the model's config.json.")
    if is_folder(name) and not is_file(Path(name) / "config.json"):
        raise InputError(f"{quote(name)} holds no config.json, so it is not a model folder.")


def _check_heads(name: str, config: Any, processes: int) -> None:
    """Refuse a decoder whose heads cannot be shared out evenly."""
    heads = config.num_attention_heads if processes > 1 else 1
    counts = (heads, getattr(config, "num_key_value_heads", None) or heads)
    if processes > 1 and any(count % processes for count in counts):
        raise InputError(
            f"{quote(name)} has {counts[0]} heads and {counts[1]} of keys and values, which {processes} processes cannot share out evenly."
        )


def _check_processor(name: str, processor: Any, config: Any) -> None:
    """Refuse a processor that takes no pictures, or does not know how many tokens a picture has."""
    if not hasattr(processor, "image_processor"):
        raise InputError(
            f"{quote(name)} cannot be loaded as a vision-language model: its processor takes no images. "
            "Save the model's own processor into the folder."
        )
    unset = [setting for setting in PICTURE_SETTINGS if getattr(processor, setting, 0) is None]
    if unset:
        configured = {"patch_size": getattr(getattr(config, "vision_config", None), "patch_size", None),
                 "vision_feature_select_strategy": getattr(config, "vision_feature_select_strategy", None)}  # fmt: skip
        values = ", ".join(f"processor.{setting} = {configured[setting]!r}" for setting in unset)
        raise InputError(
            f"The processor of {quote(name)} does not say what {' and '.join(unset)} is, so it cannot count the tokens of a "
            f"picture. By the model's config: {values}. Set that and save it with processor.save_pretrained({quote(name)})."
        )


PICTURE_SETTINGS = ("patch_size", "vision_feature_select_strategy")


def _check_preparation(name: str) -> None:
    """Refuse files that do not say how pictures are prepared: some versions of transformers then take defaults."""
    if find_file(name, "preprocessor_config.json") is not None:
        return
    combined = find_file(name, "processor_config.json")  # newer versions save everything in this one
    if combined is None or "image_processor" not in json.loads(combined.read_text()):
        raise InputError(
            f"{quote(name)} cannot be loaded as a vision-language model: it holds no preprocessor_config.json, so nothing says "
            f"how its pictures are prepared.{_advise(name)}"
        )


def _advise(name: str) -> str:
    """Return what to do about a model that cannot be loaded."""
    if exists(name):
        return " Get its files again, or name the folder of a vision-language model."
    return f" There is no such folder here, and no hub model of that name within reach. Name a local folder, or {BUNDLED!r}."


def _check_weights(name: str, missing: list[str]) -> None:
    if missing:
        raise InputError(
            f"{quote(name)} has no weights for {', '.join(missing[:3])} ({len(missing)} in all), so it would answer at "
            "random. Get its files again."
        )


def _summarise(error: Exception) -> str:
    """Return the first line of a loader's message; the lists of all models that follow it are left out."""
    line = shorten(str(error).strip().split("\n")[0], LONGEST_REASON) or type(error).__name__
    return line if line.endswith((".", "!", "?")) else f"{line}."
