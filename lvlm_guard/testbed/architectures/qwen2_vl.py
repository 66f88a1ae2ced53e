"""A small Qwen2-VL: packed patches, a merger, grouped heads, and positions in time, row and column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AutoProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from lvlm_guard.testbed.architectures.architecture import Architecture, VisionEncoder
from lvlm_guard.testbed.architectures.picture import ACROSS, IMAGE_TOKENS, MEAN, SPREAD, TOKEN, Span
from lvlm_guard.testbed.architectures.processing import PictureProcessor
from lvlm_guard.testbed.architectures.tokenizer import build_generation_config, build_tokenizer, chat_template
from lvlm_guard.testbed.world import drawing
from lvlm_guard.testbed.world.language import END, IMAGE, PAD, START, vocabulary

MERGE = 2
PATCH = TOKEN // MERGE
FRAMES = 2
PATCHES = IMAGE_TOKENS * MERGE**2
THETA = 20.0
"""Base of the rotary embedding: the last of its frequencies are those of the columns, and there are eight columns."""

TOWER_THETA = 10000.0
BEFORE, AFTER, VIDEO = MORE = ("<|vision_start|>", "<|vision_end|>", "<|video_pad|>")
"""The tokens it has beside the testbed's words; the last is never used, but its config must name one."""

_PICTURES = "testbed_pictures"
_FIRST = len(vocabulary())
SPAN = Span(
    positions=(
        (0,) * IMAGE_TOKENS,
        tuple(at // ACROSS for at in range(IMAGE_TOKENS)),
        tuple(at % ACROSS for at in range(IMAGE_TOKENS)),
    ),
    advance=ACROSS,
    before=(_FIRST,),
    after=(_FIRST + 1,),
)


def build_processor() -> PictureProcessor:
    """Tokenizer, picture preparation and chat template in one; no picture is resized."""
    from transformers import Qwen2VLImageProcessor  # noqa: PLC0415 - it says at once that torchvision is not here

    pictures = Qwen2VLImageProcessor(
        do_resize=False,
        min_pixels=drawing.SIDE**2,
        max_pixels=drawing.SIDE**2,
        image_mean=[MEAN] * 3,
        image_std=[SPREAD] * 3,
        patch_size=PATCH,
        temporal_patch_size=FRAMES,
        merge_size=MERGE,
    )
    return PictureProcessor(pictures, build_tokenizer(MORE), chat_template(f"{BEFORE}{IMAGE}{AFTER}"), IMAGE)


def build_config(
    *,
    hidden: int = 128,
    layers: int = 8,
    heads: int = 4,
    groups: int = 2,
    vision_width: int = 64,
    tower_layers: int = 4,
) -> Qwen2VLConfig:
    """The model's shape; the arguments exist for tests that want it smaller. `vision_width` is the width of a patch."""
    words = [*vocabulary(), *MORE]
    vision = {
        "depth": tower_layers,
        "embed_dim": vision_width,
        "num_heads": max(1, vision_width // 32),
        "hidden_size": hidden,
        "mlp_ratio": 4,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": FRAMES,
        "in_channels": 3,
        "initializer_range": 0.06,
    }
    text = {
        "vocab_size": len(words),
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "max_position_embeddings": 512,
        "initializer_range": 0.06,
        "rope_theta": THETA,
        "rope_scaling": {"type": "mrope", "mrope_section": sections(hidden // heads)},
        "bos_token_id": words.index(START),
        "eos_token_id": words.index(END),
        "pad_token_id": words.index(PAD),
    }
    return Qwen2VLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=words.index(IMAGE),
        video_token_id=words.index(VIDEO),
        vision_start_token_id=words.index(BEFORE),
        vision_end_token_id=words.index(AFTER),
        tie_word_embeddings=False,
    )


def sections(size: int) -> list[int]:
    """How the frequencies of a head of this size are shared out: a quarter to time, the rest to row and column."""
    time = size // 8
    row = (size // 2 - time) // 2
    return [time, row, size // 2 - time - row]


def build_model(config: Qwen2VLConfig, seed: int) -> Qwen2VLForConditionalGeneration:
    """An untrained model: branches that write to the residual stream start small, the merger loses nothing."""
    torch.manual_seed(seed)
    model = Qwen2VLForConditionalGeneration(config)
    with torch.no_grad():
        for layer in (model.model.visual.merger.mlp[0], model.model.visual.merger.mlp[2]):
            torch.nn.init.orthogonal_(layer.weight)
        for layer in model.model.language_model.layers:
            layer.self_attn.o_proj.weight.mul_(0.4)
            layer.mlp.down_proj.weight.mul_(0.4)
    model.generation_config = build_generation_config(config)
    return model


def patches(pixels: Tensor) -> Tensor:
    """Pixels (batch, 3, 64, 64) as packed patches (batch * patches, 3 * frames * patch * patch).

    The patches that are merged into one token follow each other.
    """
    blocks = pixels.unflatten(2, (ACROSS, MERGE, PATCH)).unflatten(5, (ACROSS, MERGE, PATCH))
    ordered = blocks.permute(0, 2, 5, 3, 6, 1, 4, 7).flatten(0, 4)
    return ordered[:, :, None].expand(-1, -1, FRAMES, -1, -1).flatten(1)


class PackedEyes:
    """A tower that sees all pictures of a batch in one pass: they are of one size, and each attends to itself."""

    def __init__(self, model: Qwen2VLForConditionalGeneration) -> None:
        self._tower = model.model.visual
        self._tower.set_attn_implementation(_PICTURES)
        head = self._tower.config.embed_dim // self._tower.config.num_heads
        self._turns = turns(head).to(model.device)

    def __call__(self, pixels: Tensor) -> Tensor:
        """As `VisionEncoder`; the summary is the mean of the picture's tokens."""
        features = self._tower.patch_embed(patches(pixels))
        places = tuple(part.repeat(len(pixels), 1) for part in (self._turns.cos(), self._turns.sin()))
        ends = torch.tensor([0, len(features)], dtype=torch.int32)
        for block in self._tower.blocks:
            features = block(features, cu_seqlens=ends, position_embeddings=places)
        tokens = features.view(len(pixels), IMAGE_TOKENS, -1)
        return torch.cat((tokens.mean(1, keepdim=True), tokens), dim=1)


def turns(head: int) -> Tensor:
    """The angles by which the tower turns keys and queries of one picture, shape (patches, head).

    A patch is turned by its row in one half of the frequencies and by its column in the other.
    """
    frequencies = TOWER_THETA ** -(torch.arange(0, head // 2, 2) / (head // 2))
    grid = torch.arange(ACROSS * MERGE).view(ACROSS, MERGE)
    rows = grid[:, None, :, None].expand(-1, ACROSS, -1, MERGE).flatten()
    columns = grid[None, :, None, :].expand(ACROSS, -1, MERGE, -1).flatten()
    angles = torch.cat([at[:, None] * frequencies for at in (rows, columns)], dim=1)
    return torch.cat((angles, angles), dim=1)


def picture_attention(
    _: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float, **_unused: Any
) -> tuple[Tensor, None]:
    """Attention within each of the pictures packed into one row; shapes (1, heads, pictures * patches, size)."""
    query, key, value = (part[0].unflatten(1, (-1, PATCHES)) for part in (query, key, value))
    weights = (query * scaling @ key.transpose(-1, -2)).softmax(-1)
    return (weights @ value).flatten(1, 2).transpose(0, 1)[None], None


AttentionInterface.register(_PICTURES, picture_attention)


def _tower(model: Qwen2VLForConditionalGeneration) -> nn.Module:
    """Everything before the merger, which is this architecture's projector."""
    visual = model.model.visual
    return nn.ModuleDict({"patch_embed": visual.patch_embed, "blocks": visual.blocks})


def _width(config: Qwen2VLConfig) -> int:
    width: int = config.vision_config.embed_dim * MERGE**2
    return width


def _vision_encoder(model: Qwen2VLForConditionalGeneration) -> VisionEncoder:
    return PackedEyes(model)


def _project(model: Qwen2VLForConditionalGeneration, features: Tensor) -> Tensor:
    merged: Tensor = model.model.visual.merger(features.reshape(-1, features.shape[-1] // MERGE**2))
    return merged.view(len(features), IMAGE_TOKENS, -1)


def _prepare_tower(model: Qwen2VLForConditionalGeneration) -> Sequence[nn.Module]:
    return tuple(model.model.visual.blocks)


class _Registered(Qwen2VLConfig):
    """Stands for no model: a processor is found by its name once it is registered for some config."""


AutoProcessor.register(_Registered, PictureProcessor, exist_ok=True)
PictureProcessor.register_for_auto_class()

QWEN2_VL = Architecture(
    name="qwen2_vl",
    parts="a tower on packed patches, a merger and a Qwen2 with grouped heads and positions in three axes",
    model=Qwen2VLForConditionalGeneration,
    processor=PictureProcessor,
    span=SPAN,
    build_config=build_config,
    build_model=build_model,
    build_processor=build_processor,
    tower=_tower,
    width=_width,
    vision_encoder=_vision_encoder,
    project=_project,
    place=(0.5, 0.1),
    prepare_tower=_prepare_tower,
    published=(("model.visual.", "visual."), ("model.language_model.", "model."), ("lm_head.", "lm_head.")),
    minutes=60.0,
    files=("processing.py",),
)
