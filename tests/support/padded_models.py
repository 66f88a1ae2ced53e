"""Tiny models whose processors pad the images of a batch to the largest, with two rows of different image sizes."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn.functional import pad

from lvlm_guard.testing.tiny import IMAGE_TOKEN, TEXT, TOWER, boost

Rows = list[dict[str, Tensor]]


def mistral3() -> tuple[nn.Module, Rows, dict[str, Tensor]]:
    """Pixels `[images, 3, height, width]`, padded in height and width; `image_sizes` tell."""
    vision = {"model_type": "pixtral", **TOWER, "image_size": 30, "patch_size": 6, "head_dim": 8}
    config = transformers.Mistral3Config(
        text_config={"model_type": "mistral", "head_dim": 8, **TEXT},
        vision_config=vision,
        image_token_index=IMAGE_TOKEN,
        spatial_merge_size=1,
        vision_feature_layer=-1,
    )
    rows = []
    for seed, (height, width) in enumerate(((30, 30), (18, 12))):
        prompt, draw = _prompt(height * width // 36, 4 + seed, seed)
        pixels = torch.randn(1, 3, height, width, generator=draw)
        rows.append({**prompt, "pixel_values": pixels, "image_sizes": torch.tensor([[height, width]])})
    return _build("Mistral3ForConditionalGeneration", config), rows, _join(rows)


def lfm2_vl() -> tuple[nn.Module, Rows, dict[str, Tensor]]:
    """Pixels `[images, patches, numbers]`, padded to the most patches; a mask tells."""
    kinds = {"layer_types": ["conv", "full_attention", "conv"], "full_attn_idxs": [1]}
    config = transformers.Lfm2VlConfig(
        text_config={"model_type": "lfm2", **TEXT, **kinds},
        vision_config={"model_type": "siglip2_vision_model", **TOWER, "patch_size": 4, "num_patches": 16},
        image_token_id=IMAGE_TOKEN,
        downsample_factor=2,
        projector_hidden_size=32,
    )
    rows = []
    for seed, (height, width) in enumerate(((4, 4), (4, 2))):
        prompt, draw = _prompt(height * width // 4, 4 + seed, seed)
        patches = height * width
        prompt["pixel_values"] = torch.randn(1, patches, 48, generator=draw)
        prompt["pixel_attention_mask"] = torch.ones(1, patches, dtype=torch.long)
        rows.append({**prompt, "spatial_shapes": torch.tensor([[height, width]])})
    return _build("Lfm2VlForConditionalGeneration", config), rows, _join(rows)


def _build(name: str, config: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = getattr(transformers, name)(config).eval()
    boost(model)
    return model


def _prompt(placeholders: int, text: int, seed: int) -> tuple[dict[str, Tensor], torch.Generator]:
    draw = torch.Generator().manual_seed(seed)
    words = torch.randint(5, 60, (text,), generator=draw).tolist()
    ids = torch.tensor([[8, *[IMAGE_TOKEN] * placeholders, *words]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, draw


def _join(rows: Rows) -> dict[str, Tensor]:
    """Return the rows as one batch: prompts padded on the left, everything else behind its end."""
    joined: dict[str, Tensor] = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        longest = [max(sizes) for sizes in zip(*(value.shape[1:] for value in values), strict=True)]
        joined[name] = torch.cat([_fill(value, longest, left="pixel" not in name) for value in values])
    return joined


def _fill(value: Tensor, sizes: list[int], *, left: bool) -> Tensor:
    missing = [size - own for own, size in zip(value.shape[1:], sizes, strict=True)]
    return pad(value, [side for size in reversed(missing) for side in ((size, 0) if left else (0, size))])
