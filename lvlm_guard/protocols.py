"""What the library uses of models, configs, caches and processors, whoever wrote them.

Structural types: nothing inherits from them, and transformers' own classes fit. What only some kinds have is not listed
here; it is looked up by name where it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Config(Protocol):
    """The config of a model, of its text model, or of its vision tower.

    Attributes:
        is_encoder_decoder: Whether an encoder reads the prompt.
    """

    is_encoder_decoder: bool

    def get_text_config(self, *, decoder: bool) -> Config:
        """Return the config of the text model; of its decoder where there are two."""


class Model(Protocol):
    """A model with Hugging Face's `generate`, or the module inside it that decodes.

    Attributes:
        config: Its config.
        forward: One forward; takes what `prepare_inputs_for_generation` returns.
        generate: The decoding loop.
    """

    config: Config
    forward: Callable[..., Any]
    generate: Callable[..., Any]

    @property
    def device(self) -> torch.device:
        """Where inputs go."""

    @property
    def dtype(self) -> torch.dtype:
        """What floating-point inputs are cast to."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run one forward with its hooks; the output has `logits` `[rows, positions, vocab]`."""

    def modules(self) -> Iterator[nn.Module]:
        """Iterate over the model and everything inside it."""

    def get_input_embeddings(self) -> nn.Module:
        """Return what turns token ids into the first hidden states."""

    def get_output_embeddings(self) -> nn.Module | None:
        """Return the head, which turns hidden states into logits."""

    def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs: Any) -> Mapping[str, Any]:
        """Return the arguments of the forward that feeds `input_ids`."""

    def _update_model_kwargs_for_generation(
        self, outputs: Any, model_kwargs: dict[str, Any], *, is_encoder_decoder: bool
    ) -> dict[str, Any]:
        """Return what the loop carries, after one more token; models override it, and nothing public does it."""

    def _expand_inputs_for_generation(
        self, *, expand_size: int, is_encoder_decoder: bool, input_ids: Tensor, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return ids and inputs with every row repeated; models override it, and nothing public does it."""


class CacheLayer(Protocol):
    """Keys and values of one layer.

    Attributes:
        keys: `[rows, heads, positions, size]`.
        values: `[rows, heads, positions, size]`.
        is_initialized: Whether keys and values exist.
        update: Appends keys and values, and returns those to attend to.
        crop: Keeps a number of positions, or with a negative number takes as many away.
    """

    keys: Tensor
    values: Tensor
    is_initialized: bool
    update: Callable[..., tuple[Tensor, Tensor]]
    crop: Callable[[int], None]

    def get_seq_length(self) -> int:
        """Return the number of positions seen."""


class Cache(Protocol):
    """The key-value cache of one decode.

    Attributes:
        layers: One entry for each layer of the decoder, for kinds that keep layers.
        get_seq_length: Returns the number of positions seen.
        crop: Keeps a number of positions, or with a negative number takes as many away.
        reorder_cache: Puts row `index[i]` in place of row `i`; beam search calls it.
    """

    layers: Sequence[CacheLayer]
    get_seq_length: Callable[..., int]
    crop: Callable[[int], None]
    reorder_cache: Callable[[Tensor], None]

    def activate_past_recording(self) -> None:
        """Let sliding windows keep rejected candidates until they are taken out."""


class Tokenizer(Protocol):
    """A tokenizer.

    Attributes:
        padding_side: `left` or `right`.
    """

    padding_side: str

    def __call__(self, text: str, *, add_special_tokens: bool) -> Mapping[str, list[int]]:
        """Return the ids of a text under `input_ids`."""


class Processor(Protocol):
    """A processor that turns pictures and prompts into model inputs; a bare tokenizer serves for text alone."""

    def __call__(self, **kwargs: Any) -> Any:
        """Return model inputs by name, for `images=` and `text=`; the batch moves with `.to(device=, dtype=)`."""

    def apply_chat_template(self, conversation: Sequence[Mapping[str, Any]], **kwargs: Any) -> str:
        """Return the prompt of a conversation."""

    def batch_decode(self, sequences: Tensor, *, skip_special_tokens: bool) -> list[str]:
        """Return one text for each row of ids `[rows, tokens]`."""
