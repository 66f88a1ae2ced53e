"""What a config says that changes how a model can be guarded."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from lvlm_guard.errors import quote

Values = Mapping[str, Any]
TEXT_PARTS = ("text_config", "language_config", "llm_config", "decoder")
"""Where configs keep what concerns the decoder."""
KEYLESS = re.compile("linear|mamba|conv|recurrent|ssm|delta")
"""What types of layers that score no keys have in their names."""


@dataclass(frozen=True)
class Obstacle:
    """Something in a config that changes how a model can be guarded.

    Args:
        name: What it is.
        means: What follows from it.
        remedy: What to do.
    """

    name: str
    means: str
    remedy: str


def find_obstacles(values: Values) -> list[Obstacle]:
    """Return what stands in the way, by the contents of `config.json`."""
    return [obstacle for find in _FINDERS for obstacle in find(values)]


def is_known(values: Values) -> bool:
    """Whether this transformers has the class of the config, so that no code of the checkpoint's is needed."""
    return values["model_type"] in CONFIG_MAPPING


def takes_pictures(values: Values) -> bool:
    """Whether transformers maps the type to a model that answers about pictures."""
    return values["model_type"] in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


def text_values(values: Values) -> Values:
    """Return what concerns the decoder: a config inside, or the config itself."""
    inner = (values.get(name) for name in TEXT_PARTS)
    return next((part for part in inner if isinstance(part, Mapping)), values)


def _unknown_type(values: Values) -> Iterator[Obstacle]:
    if is_known(values):
        return
    kind = quote(values["model_type"])
    if values.get("auto_map"):
        yield Obstacle(
            "remote code",
            f"The class of {kind} comes with the checkpoint, and no command here runs code of a checkpoint.",
            "Read that code, load the model yourself with trust_remote_code=True, and pass it to Guard and to "
            "lvlm_guard.verification.verify.",
        )
    else:
        yield Obstacle(
            "unknown type",
            f"This transformers has no class for {kind}.",
            "Install a newer transformers, or the version that the checkpoint's card names.",
        )


def _no_pictures(values: Values) -> Iterator[Obstacle]:
    if is_known(values) and not takes_pictures(values):
        yield Obstacle(
            "not image-text-to-text",
            f"transformers maps {quote(values['model_type'])} to no model that answers about pictures.",
            "Name a vision-language model. One of another mapping can be loaded by you and passed to Guard.",
        )


def _encoder_decoder(values: Values) -> Iterator[Obstacle]:
    if values.get("is_encoder_decoder") or text_values(values).get("is_encoder_decoder"):
        yield Obstacle(
            "encoder-decoder",
            "The prompt is read by an encoder, so branches decode one after another, and edits of prompts may be refused.",
            "Run lvlm-guard verify, which names what is refused.",
        )


def _windows(values: Values) -> Iterator[Obstacle]:
    text = text_values(values)
    window, kinds = text.get("sliding_window"), _layer_types(text)
    is_used = any("sliding" in kind for kind in kinds) if kinds else text.get("use_sliding_window", True)
    if isinstance(window, int) and window and is_used:
        yield Obstacle(
            "sliding window",
            f"Layers with a window see the last {window} tokens, so an image further back is out of their reach.",
            "Nothing is inexact. Keep image and question within the window for strategies that edit attention to the image.",
        )


def _linear_attention(values: Values) -> Iterator[Obstacle]:
    kinds = _layer_types(text_values(values))
    keyless = [kind for kind in kinds if KEYLESS.search(kind)]
    if keyless:
        yield Obstacle(
            "layers without keys",
            f"{len(keyless)} of {len(kinds)} layers are of the type {', '.join(sorted(set(keyless)))}: they keep a state, not "
            "keys and values.",
            "Branches may decode one after another, which costs a forward each. Edits of attention act on the other layers only.",
        )


def _quantisation(values: Values) -> Iterator[Obstacle]:
    settings = values.get("quantization_config") or text_values(values).get("quantization_config")
    if not isinstance(settings, Mapping):
        return
    method = str(settings.get("quant_method", "unnamed"))
    dynamic = "dynamic" in str(settings).lower()
    yield Obstacle(
        f"quantisation: {method}",
        "Activations are quantised as they come, perhaps over the whole batch, so a row may depend on the others."
        if dynamic
        else "Weights are stored in fewer bits. The package that reads them must be installed.",
        "Run lvlm-guard verify: its check of rows shows whether they are independent; where not, branches decode one after another."
        if dynamic
        else "Run lvlm-guard verify on the device that you serve on.",
    )


def _layer_types(text: Values) -> list[str]:
    kinds = text.get("layer_types")
    return [str(kind) for kind in kinds] if isinstance(kinds, list) else []


_FINDERS: tuple[Callable[[Values], Iterator[Obstacle]], ...] = (
    _unknown_type,
    _no_pictures,
    _encoder_decoder,
    _windows,
    _linear_attention,
    _quantisation,
)
