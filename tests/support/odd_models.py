"""Tiny models whose layers are built otherwise: experts, sinks, position biases, shared keys, several streams, no attention."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from versions import need

from lvlm_guard.cache_names import name_of_cache
from lvlm_guard.testing.tiny import IMAGE_TOKEN, TEXT, TOWER, boost, complete

CACHE = name_of_cache(inspect.signature(transformers.LlavaForConditionalGeneration.forward).parameters)
"""What forwards call their cache in this version of transformers."""
ROPE = {"rope_type": "default", "rope_theta": 1e4}
EXPERTS: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "n_group": 1,
    "topk_group": 1,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
}
DECODERS: dict[str, dict[str, Any]] = {
    "gpt_oss": {**EXPERTS, "head_dim": 8, "rope_parameters": ROPE, "sliding_window": 16},
    "gemma2": {"head_dim": 8, "attn_logit_softcapping": 2.0, "sliding_window": 16},
    "mixtral": EXPERTS,
    "llama4_text": {**EXPERTS, "head_dim": 8, "intermediate_size_mlp": 64, "attention_chunk_size": 64},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8},
    "kimi_linear": {
        **LATENT,
        "num_local_experts": 4,
        "linear_head_dim": 8,
        "linear_num_heads": 4,
        "layer_types": ["linear_attention", "linear_attention", "full_attention"],
    },
    "deepseek_v3": {**LATENT, "first_k_dense_replace": 1, "rope_parameters": ROPE},
    "deepseek_v32": {**LATENT, "index_topk": 8, "index_n_heads": 2, "index_head_dim": 8, "rope_parameters": ROPE},
    "granite_swa": {"head_dim": 8, "sliding_window": 16},
    "mimo_v2_flash": {"head_dim": 8, "v_head_dim": 8},
    "granite": {"logits_scaling": 8.0},
    "cohere": {"logit_scale": 0.25},
}
"""Text configs by model type, to put into a LLaVA."""


def build(kind: str, batch: int = 1) -> tuple[nn.Module, dict[str, Tensor]]:
    """Build a LLaVA around a decoder of `DECODERS`, and inputs for it."""
    return wrap_decoder(kind, DECODERS[kind], batch)


def wrap_decoder(kind: str, settings: Mapping[str, Any], batch: int = 1) -> tuple[nn.Module, dict[str, Tensor]]:
    """Build a LLaVA around a decoder of a model type with settings of its own, and inputs for it."""
    need(kind)
    vision = {"model_type": "clip_vision_model", **TOWER, "image_size": 30, "patch_size": 6, "projection_dim": 32}
    config = transformers.LlavaConfig(
        text_config={"model_type": kind, **TEXT, **settings}, vision_config=vision, image_token_index=IMAGE_TOKEN
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.LlavaForConditionalGeneration(config).eval()
        boost(model)
    draw = torch.Generator().manual_seed(0)
    image = torch.full((batch, 25), IMAGE_TOKEN)
    ids = torch.cat([image, torch.randint(5, 60, (batch, 6), generator=draw)], dim=1)
    return model, complete("llava", ids, torch.ones_like(ids), torch.randn(batch, 3, 30, 30, generator=draw))


def build_gemma4() -> tuple[nn.Module, dict[str, Tensor]]:
    """Build a Gemma 4 whose last two layers use the keys of the first two, and inputs for it."""
    need("gemma4")
    kinds = ["sliding_attention", "full_attention"] * 2
    text = {
        **TEXT,
        "head_dim": 8,
        "num_hidden_layers": 4,
        "layer_types": kinds,
        "num_kv_shared_layers": 2,
        "sliding_window": 16,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 128,
    }
    vision = {
        **TOWER,
        "head_dim": 8,
        "num_key_value_heads": 4,
        "patch_size": 4,
        "pooling_kernel_size": 2,
        "position_embedding_size": 64,
    }
    config = transformers.Gemma4Config(
        text_config=text,
        vision_config=vision,
        audio_config=None,
        image_token_id=IMAGE_TOKEN,
        boi_token_id=98,
        eoi_token_id=99,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.Gemma4ForConditionalGeneration(config).eval()
        boost(model)
    draw = torch.Generator().manual_seed(0)
    before, after = (torch.randint(5, 60, (1, size), generator=draw) for size in (2, 6))
    ids = torch.cat([before, torch.full((1, 4), IMAGE_TOKEN), after], dim=1)
    across = torch.arange(4)
    places = torch.stack(torch.meshgrid(across, across, indexing="xy"), dim=-1).reshape(1, 16, 2)
    return model, {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.rand(1, 16, 48, generator=draw),
        "image_position_ids": places,
        "mm_token_type_ids": (ids == IMAGE_TOKEN).long(),
    }
