"""Where things are in any model, found by looking: image placeholders, pixels, layers, rope state."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from lvlm_guard.errors import ModelRefused
from lvlm_guard.protocols import Model

PACKED_GRID = "image_grid_thw"
PIXEL_INPUTS = ("pixel_values", "flattened_patches")
"""What a model that encodes images calls its main input."""
DEEPEST = 3
"""How many models may lie in each other around the layers."""
PLACED_PATCHES = "flattened_patches"
"""Patches `[images, patches, 2 + numbers]` that begin with their row and column, counted from 1; 0 fills up the batch."""
IMAGE_PLACES = "image_embeds_position_mask"
"""Model input `[rows, length]` that is 1 where image features go; some processors mark their fences with -1."""
VISUAL_INPUTS = (
    "pixel", "image", "video", "aspect_ratio", "cross_attention_mask", "vision", "num_crops", "mm_encoder_outputs", "patch",
    "tile", "grid", "target_sizes", "spatial_shapes", "visual",
)  # fmt: skip
"""Parts of the names of model inputs that a text alone does not bring."""
ROPE = "rope_deltas"
"""Attribute under which some versions keep rope deltas on a module."""
_parts: weakref.WeakKeyDictionary[nn.Module, list[tuple[weakref.ref[nn.Module], list[int]]]] = (
    weakref.WeakKeyDictionary()
)
"""Every part of a module, and the identities of the parts right inside it."""


def main_input(model: Any) -> str:
    """Name of the model input that generate's first argument stands for; that of the encoder, where one reads it."""
    encoder = getattr(model, "encoder", None) if getattr(model.config, "is_encoder_decoder", False) else None
    names = (getattr(owner, "main_input_name", None) for owner in (encoder, model))
    return next((name for name in names if isinstance(name, str)), "input_ids")


def image_token_id(config: Any) -> int | None:
    """Id of the image placeholder, of videos in a model that takes them alone; None where the config names none."""
    token = _first_id(config, ("image_token_id", "image_token_index"))
    return video_token_id(config) if token is None else token


def video_token_id(config: Any) -> int | None:
    """Id of the video placeholder, or None where the model has none."""
    return _first_id(config, ("video_token_id", "video_token_index"))


def _first_id(config: Any, names: tuple[str, ...]) -> int | None:
    return next((value for name in names if isinstance(value := getattr(config, name, None), int)), None)


def is_pixels(name: str, value: Any) -> bool:
    """Whether a model input holds pixels: a float tensor called after them."""
    named = "pixel_values" in name or name in {"image_patches", "images", PLACED_PATCHES}
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


def list_parts(module: Any) -> list[nn.Module]:
    """Return what `module.modules()` yields, itself first. The list is remembered for as long as every part has the parts it had."""
    pairs = [(part, inside) for reference, inside in _parts.get(module, ()) if (part := reference()) is not None]
    if pairs and all(_list_inside(part) == inside for part, inside in pairs):
        return [part for part, _ in pairs]
    parts = list(module.modules())
    _parts[module] = [(weakref.ref(part), _list_inside(part)) for part in parts]
    return parts


def _list_inside(part: nn.Module) -> list[int]:
    """Return the identities of the parts right inside a module."""
    return list(map(id, part._modules.values()))  # noqa: SLF001 - torch's own list of them


def rope_owners(module: nn.Module | Model) -> list[nn.Module]:
    """Submodules that remember rope deltas between calls, and so must be put back after every branch."""
    return [part for part in list_parts(module) if _remembers_rope(part)]


def _remembers_rope(part: nn.Module) -> bool:
    """Whether a module has rope deltas; torch's own search for an attribute that is not there is slow."""
    if ROPE in vars(part) or hasattr(type(part), ROPE):
        return True
    return type(part).__getattr__ is not nn.Module.__getattr__ and hasattr(part, ROPE)


@contextmanager
def kept_rope(module: nn.Module | Model) -> Iterator[None]:
    """Put rope deltas back after the block: some versions keep them on the module, and read them when they go on."""
    owners = rope_owners(module)
    old_deltas = [owner.rope_deltas for owner in owners]
    try:
        yield
    finally:
        for owner, deltas in zip(owners, old_deltas, strict=True):
            owner.rope_deltas = deltas


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
    """The text model inside the module that decodes: the one that holds the layers, itself or in a part of its own.

    Raises:
        ModelRefused: No decoder layers can be found.
    """
    return _find_decoder(module)[0]


def decoder_layers(module: Any) -> nn.ModuleList:
    """The layers of the decoder, first to last.

    Raises:
        ModelRefused: No decoder layers can be found.
    """
    return _find_decoder(module)[1]


def _find_decoder(module: Any) -> tuple[nn.Module, nn.ModuleList]:
    found = module.get_decoder() if hasattr(module, "get_decoder") else module
    looked_at: list[nn.Module] = []
    while found is not None and len(looked_at) <= DEEPEST:
        if isinstance(layers := getattr(found, "layers", None), nn.ModuleList):
            return found, layers
        looked_at.append(found)
        names = ("text_model", "language_model", "model", "decoder", "base_model")
        inside = (getattr(found, name, None) for name in names)
        found = next((part for part in inside if part is not None and part is not found), None)
    for part in reversed(looked_at):
        if (stack := _only_stack(part)) is not None:
            return part, stack
    raise ModelRefused(f"{type(module).__name__} shows no decoder layers, so nothing can be done inside them.")


def _only_stack(part: nn.Module) -> nn.ModuleList | None:
    """The list of layers that attend among the children of a text model, or of parts that are no models of their own; None if not one."""
    holders = [part, *(child for child in part.children() if not hasattr(child, "main_input_name"))]
    stacks = [child for holder in holders for child in holder.children() if isinstance(child, nn.ModuleList)]
    attending = [stack for stack in stacks if len(stack) and _attends(stack[0])]
    return attending[0] if len(attending) == 1 else None


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
    """The layers of the vision tower, first to last; of towers in stages, all of their blocks.

    Raises:
        ModelRefused: No vision tower can be found.
    """
    return _find_tower(module)[1]


def vision_tower(module: Any) -> nn.Module:
    """The module that takes the pixels and holds the layers of the vision tower.

    Raises:
        ModelRefused: No vision tower can be found.
    """
    return _find_tower(module)[0]


def _find_tower(module: Any) -> tuple[nn.Module, list[nn.Module]]:
    for tower in _list_towers(module):
        stacks = [list(_flatten(stack)) for stack in _outermost_stacks(tower) if len(stack)]
        if stacks:
            return tower, max(stacks, key=lambda stack: (_attends(stack[0]), len(stack)))
    raise ModelRefused(
        f"{type(module).__name__} shows no vision tower, no stack of layers that encodes its images, so nothing can be done inside "
        "it. Choose a strategy that works on the decoder or on logits."
    )


def _list_towers(module: Any) -> Iterator[nn.Module]:
    """What may be the vision tower: by its name, as the model's encoder of images, then as a model that takes pixels and attends."""
    names = ("vision_tower", "visual", "vision_model", "image_tower")
    owners = [module, getattr(module, "model", None), getattr(module, "base_model", None)]
    named = (getattr(owner, name, None) for owner in owners if owner is not None for name in names)
    yield from (tower for tower in named if tower is not None)  # some models may be built without one
    encode = getattr(module, "get_encoder", None)
    if encode is not None and "modality" in inspect.signature(encode).parameters:
        encoder = encode(modality="image")
        if isinstance(encoder, nn.Module) and not _holds_decoder(encoder, module):
            yield encoder
    for part in module.modules():
        if _takes_pixels(part, module) and any(len(stack) and _attends(stack[0]) for stack in _outermost_stacks(part)):
            yield part


def _takes_pixels(part: Any, module: Any) -> bool:
    """Whether a part is a model of its own that takes pixels, and neither the decoder nor what holds it."""
    return getattr(part, "main_input_name", None) in PIXEL_INPUTS and not _holds_decoder(part, module)


def _holds_decoder(part: nn.Module, module: Any) -> bool:
    """Whether a part holds the layers of the decoder."""
    try:
        layers = decoder_layers(module)
    except ModelRefused:
        return part is module
    return any(inner is layers for inner in part.modules())


def _outermost_stacks(part: nn.Module) -> Iterator[nn.ModuleList]:
    """Lists of modules inside a part, without those inside of such lists."""
    for child in part.children():
        if isinstance(child, nn.ModuleList):
            yield child
        else:
            yield from _outermost_stacks(child)


def _flatten(stack: nn.ModuleList) -> Iterator[nn.Module]:
    """The modules of a list; of a list of lists, those of each."""
    for part in stack:
        yield from _flatten(part) if isinstance(part, nn.ModuleList) else (part,)


def _attends(layer: nn.Module) -> bool:
    return any("Attention" in type(part).__name__ for part in layer.modules())


def encodes_images_alone(module: Any) -> bool:
    """Whether the encoder of a model reads an image and no text."""
    encoder = module.get_encoder() if hasattr(module, "get_encoder") else None
    owners = (encoder, getattr(module, "model", None), module)
    encoders = [encoder, *(getattr(owner, "encoder", None) for owner in owners)]
    first = next((part for part in encoders if isinstance(part, nn.Module) and not _holds_decoder(part, module)), None)
    return first is not None and _takes_pixels(first, module)


def depth_and_heads(module: Any) -> tuple[int, int]:
    """Layers of the decoder and query heads of a layer; 0 where they cannot be found."""
    try:
        layers = decoder_layers(module)
    except ModelRefused:
        return 0, 0
    return len(layers), head_count(layers)


def attends_across(module: Any) -> bool:
    """Whether some decoder layers attend to the image beside the prompt, by cross-attention."""
    return bool(layers_across(module))


def layers_across(module: Any) -> frozenset[int]:
    """Return which decoder layers attend to the image beside the prompt, by cross-attention."""
    layers = enumerate(decoder_layers(module))
    return frozenset(
        index for index, layer in layers if any("Cross" in type(part).__name__ for part in layer.modules())
    )
