"""Tiny random vision-language models, one per architecture, built offline in milliseconds.

Weights are boosted so that the image and the prompt visibly matter: with default initialisation, every branch of a tiny
model gives the same logits, and a test on it has no power.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor, nn

IMAGE_TOKEN = 100
VISION_START, VISION_END = 102, 103
VOCABULARY = 128
BOOST = 6.0
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
TOWER = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
QWEN_TOKENS = {
    "image_token_id": IMAGE_TOKEN,
    "video_token_id": 101,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
}
_NEW_ROPE = int(transformers.__version__.split(".")[0]) >= 5  # noqa: PLR2004 - rope_scaling became rope_parameters


@dataclass(frozen=True)
class Tiny:
    """One tiny architecture.

    Args:
        build: Returns the model's config.
        model_class: Name of the class in transformers.
        image_tokens: Placeholders per prompt.
        pixels: Shape of the pixels of one prompt; for flattened patches, of all patches of one image.
        extra: Further inputs by name, per prompt.
        fenced: Whether vision start and end tokens surround the placeholders.
    """

    build: Callable[[], Any]
    model_class: str
    image_tokens: int
    pixels: tuple[int, ...]
    extra: dict[str, Any] = field(default_factory=dict)
    fenced: bool = False


def tiny(name: str, batch: int = 1, seed: int = 0) -> tuple[nn.Module, dict[str, Tensor]]:
    """Build a tiny model and inputs for it.

    Args:
        name: One of `ARCHITECTURES`.
        batch: Rows; every row has its own text and image.
        seed: Seed of the weights.

    Returns:
        The model in eval mode, fp32, and inputs of one length without padding.
    """
    entry = ARCHITECTURES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, entry.model_class)(entry.build()).eval()
        boost(model)
    return model, inputs_for(name, model, batch)


def boost(model: nn.Module, factor: float = BOOST) -> None:
    """Multiply every matrix by `factor`, fill zero-initialised ones, and open zero gates."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
            elif parameter.ndim > 1:
                parameter.mul_(factor)


def inputs_for(name: str, model: nn.Module, batch: int = 1, *, text: int = 6, seed: int = 0) -> dict[str, Tensor]:
    """Return inputs of a tiny model: two text tokens, the image, `text` text tokens; drawn from `seed`."""
    entry = ARCHITECTURES[name]
    draw = torch.Generator().manual_seed(seed)
    before, after = (torch.randint(5, 60, (batch, size), generator=draw) for size in (2, text))
    image = torch.tensor([placeholders(name)] * batch)
    ids = torch.cat([before, image, after], dim=1)
    packed = len(entry.pixels) == 2  # noqa: PLR2004 - a matrix of patches
    shape = (batch * entry.pixels[0], *entry.pixels[1:]) if packed else (batch, *entry.pixels)
    pixels = torch.randn(shape, generator=draw)
    return complete(name, ids, torch.ones_like(ids), pixels, model.forward)


def placeholders(name: str) -> list[int]:
    """Return the token ids that stand for the image in a prompt, with their fences."""
    entry = ARCHITECTURES[name]
    image = [IMAGE_TOKEN] * entry.image_tokens
    return [VISION_START, *image, VISION_END] if entry.fenced else image


def complete(
    name: str, ids: Tensor, mask: Tensor, pixels: Tensor, forward: Callable[..., Any] | None = None
) -> dict[str, Tensor]:
    """Return model inputs of prompts `[batch, length]` with one image each: what `forward` accepts, the class's own if None."""
    entry = ARCHITECTURES[name]
    inputs = {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}
    inputs |= {key: _per_prompt(value, ids, len(ids)) for key, value in entry.extra.items()}
    accepted = inspect.signature(forward or getattr(transformers, entry.model_class).forward).parameters
    return {key: value for key, value in inputs.items() if key in accepted}


def _per_prompt(value: Any, ids: Tensor, batch: int) -> Tensor:
    if value == "image types":
        return (ids == IMAGE_TOKEN).long()
    if value == "one per token":
        return torch.ones(*ids.shape, 1, 1, dtype=torch.long)
    return torch.tensor([value] * batch)


def _rope(sections: list[int], **more: Any) -> dict[str, Any]:
    if _NEW_ROPE:
        return {"rope_parameters": {"rope_type": "default", "mrope_section": sections, "rope_theta": 1e4, **more}}
    return {"rope_scaling": {"rope_type": "default", "type": "default", "mrope_section": sections, **more}}


def _llava() -> Any:
    vision = {"model_type": "clip_vision_model", **TOWER, "image_size": 30, "patch_size": 6, "projection_dim": 32}
    text = {"model_type": "llama", **TEXT}
    return transformers.LlavaConfig(
        text_config=text, vision_config=vision, image_token_index=IMAGE_TOKEN, image_seq_length=25
    )


def _llava_next() -> Any:
    vision = {"model_type": "clip_vision_model", **TOWER, "image_size": 8, "patch_size": 4, "projection_dim": 32}
    return transformers.LlavaNextConfig(
        text_config={"model_type": "llama", **TEXT},
        vision_config=vision,
        image_token_index=IMAGE_TOKEN,
        image_grid_pinpoints=[[16, 16]],
        image_seq_length=14,
    )


def _llava_onevision() -> Any:
    return transformers.LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **TEXT},
        vision_config={"model_type": "siglip_vision_model", **TOWER, "image_size": 16, "patch_size": 8},
        image_token_index=IMAGE_TOKEN,
        video_token_index=101,
        image_grid_pinpoints=[[16, 16], [32, 32]],
        vision_aspect_ratio="anyres_max_9",
    )


_PATCHES = {"patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3}


def _qwen2_vl() -> Any:
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 2, **_PATCHES}
    return transformers.Qwen2VLConfig(
        text_config={**TEXT, **_rope([1, 1, 2])}, vision_config=vision, **QWEN_TOKENS, vision_token_id=104
    )


def _qwen2_5_vl() -> Any:
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 32, "out_hidden_size": 32, "num_heads": 4}
    window = {"window_size": 16, "fullatt_block_indexes": [1]}
    return transformers.Qwen2_5_VLConfig(
        text_config={**TEXT, **_rope([1, 1, 2])},
        vision_config={**vision, **window, **_PATCHES},
        **QWEN_TOKENS,
        vision_token_id=104,
    )


def _qwen3_vl() -> Any:
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 32, "out_hidden_size": 32, "num_heads": 4}
    deep = {"num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}
    return transformers.Qwen3VLConfig(
        text_config={**TEXT, "head_dim": 8, **_rope([2, 1, 1], mrope_interleaved=True)},
        vision_config={**vision, **deep, **_PATCHES},
        **QWEN_TOKENS,
    )


def _internvl() -> Any:
    return transformers.InternVLConfig(
        text_config={"model_type": "qwen2", **TEXT},
        vision_config={**TOWER, "image_size": [32, 32], "patch_size": [8, 8]},
        image_token_id=IMAGE_TOKEN,
        downsample_ratio=0.5,
    )


def _idefics3() -> Any:
    return transformers.Idefics3Config(
        text_config={"model_type": "llama", **TEXT},
        vision_config={"model_type": "idefics3_vision", **TOWER, "image_size": 16, "patch_size": 4},
        image_token_id=IMAGE_TOKEN,
        scale_factor=2,
        pad_token_id=0,
    )


def _gemma3() -> Any:
    layers = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention", "full_attention"]}
    return transformers.Gemma3Config(
        text_config={**TEXT, "head_dim": 8, **layers},
        vision_config={"model_type": "siglip_vision_model", **TOWER, "image_size": 20, "patch_size": 5},
        mm_tokens_per_image=4,
        image_token_index=IMAGE_TOKEN,
        boi_token_index=98,
        eoi_token_index=99,
    )


def _paligemma() -> Any:
    vision = {"model_type": "siglip_vision_model", **TOWER, "image_size": 20, "patch_size": 5, "projection_dim": 32}
    return transformers.PaliGemmaConfig(
        text_config={"model_type": "gemma", "head_dim": 8, **TEXT},
        vision_config=vision,
        image_token_index=IMAGE_TOKEN,
        projection_dim=32,
        hidden_size=32,
    )


def _mllama() -> Any:
    rope = (
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
        if _NEW_ROPE
        else {"rope_scaling": {"rope_type": "default"}}
    )
    vision = {"image_size": 30, "patch_size": 15, "hidden_size": 32, "intermediate_size": 37, "attention_heads": 4}
    depth = {"num_hidden_layers": 2, "num_global_layers": 1, "intermediate_layers_indices": [0]}
    tiles = {"vision_output_dim": 64, "max_num_tiles": 1, "supported_aspect_ratios": [[1, 1]]}
    return transformers.MllamaConfig(
        text_config={**TEXT, "cross_attention_layers": [1], **rope},
        vision_config={**vision, **depth, **tiles},
        image_token_index=IMAGE_TOKEN,
    )


def _instructblip() -> Any:
    vision = {**TOWER, "image_size": 30, "patch_size": 10, "initializer_range": 0.02}  # its default, 1e-10, is blind
    qformer = {**TOWER, "vocab_size": VOCABULARY, "encoder_hidden_size": 32, "cross_attention_frequency": 1}
    return transformers.InstructBlipConfig(
        vision_config=vision,
        qformer_config=qformer,
        text_config={"model_type": "llama", **TEXT},
        num_query_tokens=8,
        image_token_index=IMAGE_TOKEN,
    )


def _qwen3_5() -> Any:
    kinds = {"num_hidden_layers": 4, "layer_types": ["linear_attention"] * 3 + ["full_attention"]}
    heads = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8}
    rope = _rope([2, 1, 1], mrope_interleaved=True, partial_rotary_factor=1.0)
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 32, "out_hidden_size": 32, "num_heads": 4}
    return transformers.Qwen3_5Config(
        text_config={**TEXT, "head_dim": 8, "linear_value_head_dim": 8, **kinds, **heads, **rope},
        vision_config={**vision, "num_position_embeddings": 16, **_PATCHES},
        **QWEN_TOKENS,
    )


_GRID = {"image_grid_thw": [1, 4, 4], "mm_token_type_ids": "image types"}

ARCHITECTURES: dict[str, Tiny] = {
    "llava": Tiny(_llava, "LlavaForConditionalGeneration", 25, (3, 30, 30)),
    "llava_next": Tiny(_llava_next, "LlavaNextForConditionalGeneration", 24, (5, 3, 8, 8), {"image_sizes": [16, 16]}),
    "llava_onevision": Tiny(
        _llava_onevision, "LlavaOnevisionForConditionalGeneration", 24, (5, 3, 16, 16), {"image_sizes": [32, 32]}
    ),
    "qwen2_vl": Tiny(_qwen2_vl, "Qwen2VLForConditionalGeneration", 4, (16, 96), _GRID, fenced=True),
    "qwen2_5_vl": Tiny(_qwen2_5_vl, "Qwen2_5_VLForConditionalGeneration", 4, (16, 96), _GRID, fenced=True),
    "qwen3_vl": Tiny(_qwen3_vl, "Qwen3VLForConditionalGeneration", 4, (16, 96), _GRID, fenced=True),
    "internvl": Tiny(_internvl, "InternVLForConditionalGeneration", 4, (3, 32, 32)),
    "idefics3": Tiny(
        _idefics3,
        "Idefics3ForConditionalGeneration",
        8,
        (2, 3, 16, 16),
        {"pixel_attention_mask": [[[1] * 16] * 16] * 2},
    ),
    "gemma3": Tiny(_gemma3, "Gemma3ForConditionalGeneration", 4, (3, 20, 20), {"token_type_ids": "image types"}),
    "paligemma": Tiny(
        _paligemma, "PaliGemmaForConditionalGeneration", 16, (3, 20, 20), {"token_type_ids": "image types"}
    ),
    "mllama": Tiny(
        _mllama,
        "MllamaForConditionalGeneration",
        1,
        (1, 1, 3, 30, 30),
        {"aspect_ratio_ids": [1], "aspect_ratio_mask": [[1]], "cross_attention_mask": "one per token"},
    ),
    "instructblip": Tiny(
        _instructblip,
        "InstructBlipForConditionalGeneration",
        8,
        (3, 30, 30),
        {"qformer_input_ids": [7, 8, 9], "qformer_attention_mask": [1, 1, 1]},
    ),
}
"""Tiny models by the name of their architecture; newer ones only where this transformers has them."""

if hasattr(transformers, "Qwen3_5Config"):  # linear attention; newer than the oldest supported release
    ARCHITECTURES["qwen3_5"] = Tiny(_qwen3_5, "Qwen3_5ForConditionalGeneration", 4, (16, 96), _GRID, fenced=True)
