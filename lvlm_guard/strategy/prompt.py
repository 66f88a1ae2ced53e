"""What was asked of the model, the model it was asked of, and the states of a prompt that ran once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lvlm_guard.strategy.edits import layer_index


@dataclass(frozen=True)
class Prompt:
    """What was asked: the prompts and pictures of one call.

    Args:
        inputs: The keyword arguments of the call that are model inputs, as the user passed them.
        ids: Token ids `[batch, length]`, left-padded.
        attention_mask: `[batch, length]`, 0 at padding.
        image_mask: Bool `[batch, length]`, true at image placeholders.
        has_image: Whether the request brings pixels or already encoded images.
        image_token: Id of the image placeholder, or None.
        pictures: The picture of each request where the guard knows that each has one of its own, else None.
        pictures_missing: Why `pictures` is None, and what to do; empty where it is not.
        rows_per_request: Rows of generate per request: beams or returned sequences; 1 until main is prepared.
    """

    inputs: Mapping[str, Any]
    ids: Tensor
    attention_mask: Tensor
    image_mask: Tensor
    has_image: bool = False
    image_token: int | None = None
    pictures: tuple[Any, ...] | None = None
    pictures_missing: str = ""
    rows_per_request: int = 1


@dataclass(frozen=True)
class ModelInfo:
    """The model that answers; `depth`, `heads` and `tied_embeddings` are filled in before `start`.

    Args:
        config: The model's config; artefacts fitted offline are checked against it.
        tokenizer: The tokenizer, or None.
        depth: Layers of the decoder.
        heads: Query heads of a decoder layer.
        tied_embeddings: Whether the head shares the weights of the token embeddings, so that the readout of an
            embedding is the token itself.
        digest_weights: Returns digests of some of its weights, by which artefacts know it; or None.
        digest_image_side: Returns a digest of all that is not the decoder, the projector included; or None.
    """

    config: Any = None
    tokenizer: Any = None
    depth: int = 0
    heads: int = 0
    tied_embeddings: bool = False
    digest_weights: Callable[[], dict[str, dict[str, str]]] | None = None
    digest_image_side: Callable[[], dict[str, dict[str, str]]] | None = None

    @property
    def hidden_size(self) -> int | None:
        """Width of the decoder's residual stream; None where the config does not say."""
        size = getattr(self.config.get_text_config(decoder=True), "hidden_size", None)
        return size if isinstance(size, int) else None

    def layer_number(self, layer: float) -> int:
        """Return the number of a layer: a whole number is one, a float is a fraction of the depth."""
        return layer_index(layer, self.depth)


@dataclass(frozen=True)
class PromptStates:
    """The states of a prompt that ran once.

    Args:
        hidden: Residual stream at the last position after each layer `[rows, layers, hidden]`, in fp32.
        logits: Next-token logits `[rows, vocab]`, in fp32.
    """

    hidden: Tensor
    logits: Tensor
