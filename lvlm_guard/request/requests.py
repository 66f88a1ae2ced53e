"""One request to generate: its arguments split into model inputs and settings, and the pictures behind it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, distributed
from transformers import GenerationConfig
from transformers.generation import GenerationMixin
from transformers.generation import utils as generation
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.processing_utils import ImagesKwargs, TextKwargs

from lvlm_guard import anatomy
from lvlm_guard.cache_names import CACHE_NAMES
from lvlm_guard.errors import InputError, ModeRefused
from lvlm_guard.protocols import Config, Processor
from lvlm_guard.request.fences import find_placeholder

DEFAULT_SETTINGS: Mapping[str, Any] = dict(vars(GenerationConfig()))
"""Settings of the loop as they are when nobody sets them."""
PICTURES = len(("pictures", "channels", "height", "width"))
"""Axes of pixels that have an entry for each picture, or for each of its tiles."""
CHANNELS = (1, 3)
"""Channels of a picture, grey or in colours."""
FRAMES = len(("videos", "frames", "channels", "height", "width"))
"""Axes of pixels that have an entry for each video, or for each tile of a row."""
OPTIONS_OF_TEXT = frozenset({*TextKwargs.__annotations__, "text_kwargs"})
"""Options of processors that are about text."""
OPTIONS_OF_PICTURES = frozenset(ImagesKwargs.__annotations__)
"""Options that every processor of pictures may have."""
SETTINGS = (
    frozenset(DEFAULT_SETTINGS)
    | frozenset(inspect.signature(GenerationMixin.generate).parameters)
    | {"tokenizer", "assistant_tokenizer"}
)


@dataclass(frozen=True)
class Pictures:
    """Pictures behind a batch of inputs.

    Args:
        pictures: PIL pictures, in the order of the pixels.
        process: Processes pictures in their place into pixel inputs.
        missing: Why there are none although the inputs were made of pictures; empty otherwise.
        options: What each picture was read with: options of the processor that are not about text.
    """

    pictures: tuple[Any, ...]
    process: Callable[[list[Any]], Mapping[str, Any]]
    missing: str = ""
    options: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, eq=False)
class Request:
    """A call of generate.

    Args:
        inputs: Model inputs by name; `input_ids` is there, but where an encoder reads the image alone, or pictures are to be
            described without a prompt.
        settings: Everything else: the generation config and its overrides, processors, streamer, assistant.
        config: The model's config.
        processor: The processor, or None.
        pictures: The pictures that the inputs were made of and how to process pictures like them, if remembered.
        defaults: The model's own generation config.
        main_input: Name of the input that generate's first argument stands for.

    Attributes:
        text_name: Name of the input that holds the prompt: `decoder_input_ids` where an encoder reads the image alone.
        input_ids: The prompt `[batch, length]`; what generate begins with where an encoder reads the image and there is none,
            and empty where pictures are to be described without one.
        attention_mask: Its mask `[batch, length]`.

    Raises:
        ModeRefused: There are no `input_ids`.
        InputError: The batch is padded on the right.
    """

    inputs: dict[str, Any]
    settings: dict[str, Any]
    config: Config
    processor: Processor | None = None
    pictures: Pictures | None = None
    defaults: Any = None
    main_input: str = "input_ids"
    text_name: str = field(init=False)
    input_ids: Tensor = field(init=False)
    attention_mask: Tensor = field(init=False)

    def __post_init__(self) -> None:
        decodes_apart = self.inputs.get("input_ids") is None and self._reads_image_alone
        object.__setattr__(self, "text_name", "decoder_input_ids" if decodes_apart else "input_ids")
        ids = self.inputs.get(self.text_name)
        ids = (self._begin_decoding() if decodes_apart else self._begin_describing()) if ids is None else ids
        if not isinstance(ids, Tensor):
            raise ModeRefused(
                "A guarded generate needs input_ids, of which branches are made; embeddings alone do not do. Pass the "
                "processor's full output, generate(**inputs)."
            )
        mask = self.inputs.get(self.mask_name)
        object.__setattr__(self, "input_ids", ids)
        object.__setattr__(self, "attention_mask", _infer_mask(ids, self.config) if mask is None else mask)
        decoder_only = not getattr(self.config, "is_encoder_decoder", False)
        if decoder_only and self.has_prompt and bool((self.attention_mask[:, -1] == 0).any()):
            raise InputError("The batch is padded on the right. Set processor.tokenizer.padding_side = 'left'.")

    @property
    def _reads_image_alone(self) -> bool:
        """Whether an encoder reads the image, and the prompt is the decoder's."""
        pixels = any(anatomy.is_pixels(name, value) for name, value in self.inputs.items())
        return bool(getattr(self.config, "is_encoder_decoder", False)) and pixels

    def _begin_decoding(self) -> Tensor | None:
        """The tokens `[batch, 1]` that generate lets a decoder begin with; None where nothing says which."""
        text = self.config.get_text_config(decoder=True)
        sources = (self.setting("decoder_start_token_id"), getattr(self.config, "decoder_start_token_id", None))
        begins = (*sources, getattr(text, "decoder_start_token_id", None), self.setting("bos_token_id"))
        start = next((token for token in begins if isinstance(token, int)), None)
        pixels = next(value for name, value in self.inputs.items() if anatomy.is_pixels(name, value))
        return None if start is None else torch.full((len(pixels), 1), start, device=pixels.device)

    def _begin_describing(self) -> Tensor | None:
        """An empty prompt `[batch, 0]` for pictures that are passed alone; None where there are none."""
        pixels = [value for name, value in self.inputs.items() if anatomy.is_pixels(name, value)]
        alone = len(pixels) == 1 and pixels[0].ndim == PICTURES and "inputs_embeds" not in self.inputs
        alone = alone and (anatomy.image_token_id(self.config) is None or self.main_input != "input_ids")
        return torch.empty(len(pixels[0]), 0, dtype=torch.long, device=pixels[0].device) if alone else None

    @property
    def has_prompt(self) -> bool:
        """Whether the call brings a prompt; some models describe pictures without one."""
        return self.input_ids.shape[1] > 0

    @property
    def mask_name(self) -> str:
        """Name of the input that holds the mask of the prompt."""
        return "attention_mask" if self.text_name == "input_ids" else "decoder_attention_mask"

    def setting(self, name: str) -> Any:
        """Return a setting of the loop as generate resolves it: keyword, config of the call, the model's config."""
        sources = (self.settings.get("generation_config"), self.defaults)
        values = (self.settings.get(name), *(getattr(source, name, None) for source in sources))
        return next((value for value in values if value is not None), None)

    def is_of_checkpoint(self, name: str) -> bool:
        """Whether a setting comes from the model's own generation config, and not from the call."""
        config = self.settings.get("generation_config")
        return self.settings.get(name) is None and getattr(config, name, None) is None

    @property
    def vocabulary(self) -> int | None:
        """Number of token ids that the model embeds, None where its config does not say."""
        size = getattr(self.config.get_text_config(decoder=True), "vocab_size", None)
        return size if isinstance(size, int) else None

    @property
    def without_cache(self) -> dict[str, Any]:
        """Model inputs without the user's cache, which belongs to main alone."""
        return {name: value for name, value in self.inputs.items() if name not in CACHE_NAMES}

    @property
    def has_image(self) -> bool:
        """Whether the request brings pixels or already encoded images; those of a video are none."""
        return any(
            name == "mm_encoder_outputs" or (anatomy.is_pixels(name, value) and not anatomy.is_video_input(name))
            for name, value in self.inputs.items()
        )

    @property
    def has_video(self) -> bool:
        """Whether the request brings a video."""
        encoded = self.inputs.get("mm_encoder_outputs")
        if isinstance(encoded, Mapping) and encoded.get("video") is not None:
            return True
        return any(anatomy.is_video_input(name) and isinstance(value, Tensor) for name, value in self.inputs.items())

    @property
    def frame_counts(self) -> list[int] | None:
        """Frames of each video of the batch, as often as the prompt may name them; None where no model input counts them."""
        for name in ("video_grid_thw", "video_grids"):
            if isinstance(grid := self.inputs.get(name), Tensor):
                return [int(frames) for frames in grid[:, 0].tolist()]
        if isinstance(counts := self.inputs.get("num_frames_per_video"), Tensor):
            return [int(frames) for frames in counts.tolist()]
        frames = self.inputs.get("pixel_values_videos")
        return [int(frames.shape[1])] * len(frames) if isinstance(frames, Tensor) and frames.ndim == FRAMES else None

    @property
    def image_count(self) -> int | None:
        """Number of images of the batch where a model input has an entry for each, else None."""
        of_images = {
            name: value
            for name, value in self.inputs.items()
            if isinstance(value, Tensor) and anatomy.is_image_input(name) and not anatomy.is_video_input(name)
        }
        for name, value in of_images.items():
            if (name == "image_sizes" or name.startswith("image_grid")) and value.ndim == 2:  # noqa: PLR2004
                return len(value)
        pixels = of_images.get("pixel_values")
        pictures = pixels is not None and pixels.ndim == PICTURES and "target_sizes" not in of_images
        return len(pixels) if pixels is not None and pictures else None

    @property
    def has_tiles(self) -> bool:
        """Whether the pixels have an entry for each tile of a row, which may belong to one image or to several."""
        pixels = self.inputs.get("pixel_values")
        return isinstance(pixels, Tensor) and pixels.ndim == FRAMES and pixels.shape[-3] in CHANNELS

    @property
    def row_lists(self) -> dict[str, Any]:
        """Inputs that are lists with an entry for each row, such as `adapter_names`."""
        rows = len(self.input_ids)
        return {name: value for name, value in self.inputs.items() if is_list_of_rows(name, value, rows)}

    @property
    def row_list(self) -> str | None:
        """Name of an input that is a list with an entry for each row; None where there is none."""
        return next(iter(self.row_lists), None)

    @functools.cached_property
    def placeholder(self) -> int | None:
        """Id of the image placeholder, None where neither the config nor the processor names one."""
        return find_placeholder(self.config, self.processor)

    @property
    def places(self) -> Tensor | None:
        """Where images and their fences stand `[batch, length]`, 1 and -1, where an input of the model says so, else None."""
        places = self.inputs.get(anatomy.IMAGE_PLACES)
        return places if isinstance(places, Tensor) and places.shape == self.input_ids.shape else None

    @property
    def image_mask(self) -> Tensor:
        """True at image placeholders `[batch, length]`."""
        if (places := self.places) is not None:
            return places == 1
        none = torch.zeros_like(self.input_ids, dtype=torch.bool)
        return none if self.placeholder is None else self.input_ids == self.placeholder

    @property
    def video_mask(self) -> Tensor:
        """True at video placeholders `[batch, length]`, all False without a video."""
        token = self.video_placeholder
        return torch.zeros_like(self.input_ids, dtype=torch.bool) if token is None else self.input_ids == token

    @property
    def video_placeholder(self) -> int | None:
        """Id of the video placeholder, of images in models that have one for both; None without a video."""
        token = anatomy.video_token_id(self.config)
        is_own = token is not None and bool((self.input_ids == token).any())
        return (token if is_own else self.placeholder) if self.has_video else None

    @property
    def stands_beside(self) -> bool:
        """Whether the image stands beside the prompt: no token of any row stands for it, nor does the config name one that might."""
        names_none = anatomy.image_token_id(self.config) is None or not self.has_prompt
        return self.has_image and names_none and not bool(self.image_mask.any())


def bind_arguments(generate: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call of `generate` by name, positional ones included.

    Raises:
        InputError: There are too many, or one comes twice.
    """
    parameters = inspect.signature(generate).parameters.values()
    positional = [
        parameter.name
        for parameter in parameters
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ] or ["inputs"]
    if len(args) > len(positional):
        raise InputError(f"generate takes {len(positional)} positional arguments, got {len(args)}.")
    named = dict(zip(positional, args, strict=False))
    repeated = set(named) & set(kwargs)
    if repeated:
        raise InputError(f"generate got {min(repeated)!r} twice, by position and by name.")
    return {**named, **kwargs}


def runs_in_step(model: Any) -> bool:
    """Whether generate keeps several processes in step by itself, as FSDP and ZeRO-3 need it."""
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return False
    return bool(is_deepspeed_zero3_enabled() or generation.is_fsdp_managed_module(model))


def split_arguments(
    arguments: Mapping[str, Any], main_input: str = "input_ids"
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split the arguments of generate into model inputs and settings; `inputs` counts as the model's main input."""
    inputs = {name: value for name, value in arguments.items() if name not in SETTINGS and value is not None}
    settings = {name: value for name, value in arguments.items() if name in SETTINGS and name != "inputs"}
    if arguments.get("inputs") is not None:
        inputs.setdefault(main_input, arguments["inputs"])
    return inputs, settings


def is_list_of_rows(name: str, value: Any, rows: int) -> bool:
    """Whether an input is a list with an entry for each row; those of images have one for each image."""
    of_rows = isinstance(value, (list, tuple)) and len(value) == rows and name not in CACHE_NAMES
    return of_rows and not anatomy.is_image_input(name)


def _infer_mask(ids: Tensor, config: Config) -> Tensor:
    """Attend everywhere except at leading padding, as generate infers it from the ids."""
    pad = getattr(config.get_text_config(decoder=True), "pad_token_id", None)
    eos = getattr(config.get_text_config(decoder=True), "eos_token_id", None)
    if pad is None or pad == eos or (isinstance(eos, list) and pad in eos) or not bool((ids == pad).any()):
        return torch.ones_like(ids)
    return (ids != pad).long()
