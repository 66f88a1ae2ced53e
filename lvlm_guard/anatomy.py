"""Where things are in any model, found by looking: image placeholders, pixels, layers, rope state."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lvlm_guard.errors import ModelRefused
from lvlm_guard.protocols import Model

PACKED_GRID = "image_grid_thw"
VISUAL_INPUTS = (
    "pixel", "image", "video", "aspect_ratio", "cross_attention_mask", "vision", "num_crops", "mm_encoder_outputs", "patch",
    "tile", "grid", "target_sizes", "spatial_shapes",
)  # fmt: skip
"""Parts of the names of model inputs that a text alone does not bring."""


def image_token_id(config: Any) -> int | None:
    """Id of the image placeholder, or None where the model has none."""
    return _first_id(config, ("image_token_id", "image_token_index"))


def video_token_id(config: Any) -> int | None:
    """Id of the video placeholder, or None where the model has none."""
    return _first_id(config, ("video_token_id", "video_token_index"))


def _first_id(config: Any, names: tuple[str, ...]) -> int | None:
    return next((value for name in names if isinstance(value := getattr(config, name, None), int)), None)


def image_mask(config: Any, input_ids: Tensor) -> Tensor:
    """True at image placeholders; bool, shape of `input_ids`."""
    token = image_token_id(config)
    return torch.zeros_like(input_ids, dtype=torch.bool) if token is None else input_ids == token


def is_pixels(name: str, value: Any) -> bool:
    """Whether a model input holds pixels: a float tensor called after them."""
    named = "pixel_values" in name or name == "image_patches"
    return named and isinstance(value, Tensor) and value.is_floating_point()


def is_image_input(name: str) -> bool:
    """Whether a model input exists only because there is an image."""
    return any(mark in name for mark in VISUAL_INPUTS)


def is_video_input(name: str) -> bool:
    """Whether a model input exists only because there is a video."""
    return "video" in name


def packed_frames(config: Any, width: int) -> tuple[int, int] | None:
    """Channels and temporal frames inside one flattened patch of `width` numbers, or None when it is not divisible."""
    vision = getattr(config, "vision_config", None)
    frames = getattr(vision, "temporal_patch_size", None) or 1
    frames = int(frames[0] if isinstance(frames, (list, tuple)) else frames)
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


def rotation_limit(config: Any) -> int | None:
    """Positions beyond which rotary embeddings of all of them depend on how long the prompt is; None where they never do."""
    text = config.get_text_config(decoder=True)
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None)
    if not isinstance(rope, dict) or rope.get("rope_type", rope.get("type")) not in ("dynamic", "longrope"):
        return None
    limits = (rope.get("original_max_position_embeddings"), getattr(text, "original_max_position_embeddings", None))
    stated = next((limit for limit in limits if isinstance(limit, int)), None)
    return maximum_length(config) if stated is None else stated


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
    parts = dict(decoder(module).named_children())
    names = ("norm", "final_layer_norm", "final_layernorm", "embedding_norm", "norm_f", "layer_norm")
    return next((parts[name] for name in names if name in parts), None)


def ties_embeddings(module: Any) -> bool:
    """Whether the head reads with the weights that embed the tokens."""
    try:
        head, embeddings = module.get_output_embeddings(), module.get_input_embeddings()
    except NotImplementedError:
        return False
    weight = getattr(head, "weight", None)
    return weight is not None and weight is getattr(embeddings, "weight", None)


MARKS = {
    "attention": ("Attention", "Mixer", "DeltaNet"),
    "mlp": ("MLP", "Mlp", "FeedForward", "Moe", "MoE", "FFN"),
}
"""What classes of blocks have in their names; families of experts have it in the names of all their classes."""
FOREIGN = {"attention": ("Norm",), "mlp": ("Norm", *MARKS["attention"])}
"""What classes of other parts have in their names."""
NAMES = {
    "attention": ("self_attn", "attention", "attn", "self_attention", "linear_attn", "conv"),
    "mlp": ("mlp", "feed_forward", "block_sparse_moe", "moe", "ffn"),
}
"""What layers call blocks whose classes have none of it in their names."""


def find_part(layer: nn.Module, site: str) -> nn.Module | None:
    """The attention (`attention`) or feed-forward (`mlp`) block among the children of a layer, or None."""
    children = dict(layer.named_children())
    for part in children.values():
        name = type(part).__name__
        if any(mark in name for mark in MARKS[site]) and not any(mark in name for mark in FOREIGN[site]):
            return part
    return next((children[name] for name in NAMES[site] if name in children), None)


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
    """The configs that name the attention of the decoder, each once."""
    configs = (getattr(part, "config", None) for part in decoder(module).modules())
    found = {id(config): config for config in configs if hasattr(config, "_attn_implementation")}
    return list(found.values())


def head_count(layers: nn.ModuleList) -> int:
    """Query heads of the decoder's attention; those of the first layer that says so, where layers differ."""
    return next((heads for part in layers.modules() if (heads := _stated_heads(part))), 0)


def _stated_heads(part: nn.Module) -> int:
    try:
        stated = getattr(getattr(part, "config", None), "num_attention_heads", None)
    except RuntimeError:  # a config whose layers differ does not say it of all
        stated = getattr(part, "num_heads", None)
    return stated if isinstance(stated, int) else 0


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
