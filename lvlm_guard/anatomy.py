"""Where things are in any model, found by looking: image placeholders, the tokens that fence them, pixels, rope state."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lvlm_guard.errors import ModelRefused
from lvlm_guard.protocols import Model

FENCES = (
    "vision_start_token_id",
    "vision_end_token_id",
    "boi_token_id",
    "boi_token_index",
    "eoi_token_id",
    "eoi_token_index",
    "image_start_token_id",
    "image_end_token_id",
    "start_image_token_id",
    "end_image_token_id",
    "fake_image_token_id",
    "global_image_token_id",
)
PACKED_GRID = "image_grid_thw"


def image_token_id(config: Any) -> int | None:
    """Id of the image placeholder, or None where the model has none."""
    for name in ("image_token_id", "image_token_index"):
        value = getattr(config, name, None)
        if isinstance(value, int):
            return value
    return None


def image_mask(config: Any, input_ids: Tensor) -> Tensor:
    """True at image placeholders; bool, shape of `input_ids`."""
    token = image_token_id(config)
    return torch.zeros_like(input_ids, dtype=torch.bool) if token is None else input_ids == token


def fence_ids(config: Any, processor: Any = None) -> frozenset[int]:
    """Ids of the tokens that open and close an image in the prompt, as far as config and processor name them."""
    found = {getattr(owner, name, None) for owner in (config, processor) if owner is not None for name in FENCES}
    return frozenset(value for value in found if isinstance(value, int))


def is_pixels(name: str, value: Any) -> bool:
    """Whether a model input holds pixels: a float tensor called after them."""
    named = "pixel_values" in name or name == "image_patches"
    return named and isinstance(value, Tensor) and value.is_floating_point()


def is_image_input(name: str) -> bool:
    """Whether a model input exists only because there is an image."""
    marks = ("pixel", "image", "aspect_ratio", "cross_attention_mask", "vision", "num_crops", "mm_encoder_outputs")
    return any(mark in name for mark in marks)


def packed_frames(config: Any, width: int) -> tuple[int, int] | None:
    """Channels and temporal frames inside one flattened patch of `width` numbers, or None when it is not divisible."""
    vision = getattr(config, "vision_config", None)
    frames = getattr(vision, "temporal_patch_size", None) or 1
    channels = getattr(vision, "in_channels", None) or getattr(vision, "in_chans", None) or 3
    return (channels, frames) if width % (channels * frames) == 0 else None


def rope_owners(module: nn.Module | Model) -> list[nn.Module]:
    """Submodules that remember rope deltas between calls, and so must be put back after every branch."""
    return [part for part in module.modules() if hasattr(part, "rope_deltas")]


def maximum_length(config: Any) -> int | None:
    """Positions the decoder was built for, or None when the config does not say."""
    text = config.get_text_config(decoder=True)
    value = getattr(text, "max_position_embeddings", None)
    return value if isinstance(value, int) else None


def feature_names(encoded: Any) -> list[str]:
    """Attributes of an image encoder output that hold per-image features the decoder reads."""
    return [name for name in ("pooler_output", "deepstack_features") if getattr(encoded, name, None) is not None]


def decoder(module: Any) -> nn.Module:
    """The text model inside the module that decodes: the one that holds the layers.

    Raises:
        ModelRefused: No decoder layers can be found.
    """
    found = module.get_decoder() if hasattr(module, "get_decoder") else module
    for _ in range(3):
        if isinstance(getattr(found, "layers", None), nn.ModuleList):
            return found
        names = ("text_model", "language_model", "model", "decoder")
        found = next((part for name in names if (part := getattr(found, name, None)) is not None), None)
    raise ModelRefused(f"{type(module).__name__} shows no decoder layers, so nothing can be done inside them.")


def decoder_layers(module: Any) -> nn.ModuleList:
    """The layers of the decoder, first to last."""
    layers = decoder(module).layers
    assert isinstance(layers, nn.ModuleList)
    return layers


def final_norm(module: Any) -> nn.Module | None:
    """The norm between the last layer and the head, or None."""
    names = ("norm", "final_layer_norm", "final_layernorm", "embedding_norm")
    return next((part for name in names if (part := getattr(decoder(module), name, None)) is not None), None)


def ties_embeddings(module: Any) -> bool:
    """Whether the head reads with the weights that embed the tokens."""
    try:
        head, embeddings = module.get_output_embeddings(), module.get_input_embeddings()
    except NotImplementedError:
        return False
    weight = getattr(head, "weight", None)
    return weight is not None and weight is getattr(embeddings, "weight", None)


def find_part(layer: nn.Module, site: str) -> nn.Module | None:
    """The attention (`attention`) or feed-forward (`mlp`) block among the children of a layer, or None."""
    marks = {
        "attention": ("Attention", "Mixer", "DeltaNet"),
        "mlp": ("MLP", "Mlp", "FeedForward", "Moe", "MoE", "FFN"),
    }[site]
    return next((part for part in layer.children() if any(mark in type(part).__name__ for mark in marks)), None)


def layer_part(layer: nn.Module, site: str) -> nn.Module:
    """The layer itself (`residual`), its attention block or its feed-forward block.

    Raises:
        ModelRefused: The layer has no such block as a module of its own.
    """
    if site == "residual":
        return layer
    if (part := find_part(layer, site)) is not None:
        return part
    raise ModelRefused(f"{type(layer).__name__} has no {site} block as a module of its own, so it cannot be edited.")


def attention_configs(module: Any) -> list[Any]:
    """The configs that name the attention of the decoder's layers, each once."""
    found = {
        id(part.config): part.config
        for part in decoder(module).modules()
        if getattr(part, "layer_idx", None) is not None
        and hasattr(getattr(part, "config", None), "_attn_implementation")
    }
    return list(found.values())


def attends(layer: nn.Module) -> bool:
    """Whether a decoder layer runs attention through transformers' interface."""
    return any(
        getattr(part, "layer_idx", None) is not None and "Attention" in type(part).__name__ for part in layer.modules()
    )


def head_count(layers: nn.ModuleList) -> int:
    """Query heads of the decoder's attention."""
    owners = (part for part in layers.modules() if hasattr(getattr(part, "config", None), "num_attention_heads"))
    return int(getattr(getattr(next(owners, None), "config", None), "num_attention_heads", 0))


def vision_layers(module: Any) -> list[nn.Module]:
    """The layers of the vision tower, first to last.

    Raises:
        ModelRefused: No vision tower can be found.
    """
    names = ("vision_tower", "visual", "vision_model", "image_tower")
    owners = [module, getattr(module, "model", None), getattr(module, "base_model", None)]
    towers = [getattr(owner, name) for owner in owners if owner is not None for name in names if hasattr(owner, name)]
    for tower in towers:
        stacks = [
            part for part in tower.modules() if isinstance(part, nn.ModuleList) and len(part) and _attends(part[0])
        ]
        if stacks:
            return max((list(stack) for stack in stacks), key=len)
    raise ModelRefused(f"{type(module).__name__} shows no vision tower, so nothing can be done inside it.")


def _attends(layer: nn.Module) -> bool:
    return any("Attention" in type(part).__name__ for part in layer.modules())


def depth_and_heads(module: Any) -> tuple[int, int]:
    """Layers of the decoder and query heads of a layer; 0 where they cannot be found."""
    try:
        layers = decoder_layers(module)
    except ModelRefused:
        return 0, 0
    return len(layers), head_count(layers)


def attends_across(module: Any) -> bool:
    """Whether some decoder layers attend to the image beside the prompt, by cross-attention."""
    return any("Cross" in type(part).__name__ for part in decoder_layers(module).modules())
