"""Tiny models that make their own positions, or keep an image in their cache that no token of the prompt stands for."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor

from lvlm_guard.testing.tiny import IMAGE_TOKEN, TEXT, TOWER, boost

VISION = {**TOWER, "image_size": 16, "patch_size": 8, "initializer_range": 0.02}  # the default of some is blind
KOSMOS_TEXT: dict[str, Any] = {
    "vocab_size": 128,
    "embed_dim": 32,
    "layers": 3,
    "ffn_dim": 64,
    "attention_heads": 4,
    "dropout": 0.0,
}
KOSMOS_TEXT |= {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": None, "attention_dropout": 0.0}
LATENT = 4
"""Positions of the image in a Kosmos prompt."""


def _kosmos2() -> Any:
    config = transformers.Kosmos2Config(
        text_config={**KOSMOS_TEXT, "max_position_embeddings": 128}, vision_config=VISION, latent_query_num=LATENT
    )
    return transformers.Kosmos2ForConditionalGeneration(config)


def _kosmos2_5() -> Any:
    vision = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision |= {"patch_embed_hidden_size": 48, "head_dim": 8, "max_num_patches": 9}
    config = transformers.Kosmos2_5Config(
        text_config={**KOSMOS_TEXT, "max_position_embeddings": 128}, vision_config=vision, latent_query_num=LATENT
    )
    return transformers.Kosmos2_5ForConditionalGeneration(config)


def _git() -> Any:
    text = {name: value for name, value in TEXT.items() if name != "num_key_value_heads"}
    config = transformers.GitConfig(vision_config=VISION, **{**text, "max_position_embeddings": 128})
    return transformers.GitForCausalLM(config)


def _blip() -> Any:
    text = {**TOWER, "vocab_size": 128, "encoder_hidden_size": 32, "max_position_embeddings": 64, "is_decoder": True}
    text |= {"bos_token_id": 1, "pad_token_id": 0, "sep_token_id": 127, "eos_token_id": 127}
    return transformers.BlipForConditionalGeneration(
        transformers.BlipConfig(text_config=text, vision_config=VISION, projection_dim=32)
    )


def _blip2_opt() -> Any:
    text = {"model_type": "opt", "hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64, "num_hidden_layers": 3}
    text |= {"num_attention_heads": 4, "vocab_size": 128, "max_position_embeddings": 128, "dropout": 0.0}
    text |= {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": None}
    qformer = {**TOWER, "vocab_size": 128, "encoder_hidden_size": 32, "cross_attention_frequency": 1}
    config = transformers.Blip2Config(
        vision_config=VISION, qformer_config=qformer, text_config=text,
        num_query_tokens=LATENT, image_token_index=IMAGE_TOKEN,
    )  # fmt: skip
    return transformers.Blip2ForConditionalGeneration(config)


def _idefics() -> Any:
    vision = {"embed_dim": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {name: value for name, value in TEXT.items() if name != "num_key_value_heads"}
    config = transformers.IdeficsConfig(
        **text, additional_vocab_size=0, vision_config={**vision, "image_size": 16, "patch_size": 8},
        perceiver_config={"use_resampler": False}, use_resampler=False, cross_layer_interval=1, alpha_initializer="ones",
    )  # fmt: skip
    return transformers.IdeficsForVisionText2Text(config)


BUILDERS = {
    "idefics": _idefics,
    "kosmos2": _kosmos2,
    "kosmos2_5": _kosmos2_5,
    "git": _git,
    "blip": _blip,
    "blip2_opt": _blip2_opt,
}


def build(name: str, seed: int = 0) -> Any:
    """Build one of `BUILDERS`, with weights that let the image matter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BUILDERS[name]().eval()
        boost(model)
        if name.startswith("kosmos"):
            model.image_to_text_projection.latent_query.data.mul_(0.02)  # beside it the image would not matter
    return model


def inputs_for(name: str, *, padding: int = 0) -> dict[str, Tensor]:
    """Inputs of two prompts, the second `padding` tokens shorter and padded on the left."""
    draw = torch.Generator().manual_seed(3)
    text = torch.randint(5, 60, (2, 7), generator=draw)
    image = torch.full((2, LATENT), IMAGE_TOKEN)
    has_slots = name in ("kosmos2", "kosmos2_5", "blip2_opt")
    ids = torch.cat([text[:, :1], image, text[:, 1:]], dim=1) if has_slots else text
    mask = torch.ones_like(ids)
    if padding:
        pad = 1 if has_slots else 0
        ids[1] = torch.cat([torch.full((padding,), pad), ids[1, :-padding]])
        mask[1, :padding] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if name == "kosmos2_5":
        inputs["flattened_patches"] = _flattened(draw)
    else:
        inputs["pixel_values"] = torch.randn(2, 3, 16, 16, generator=draw)
    if name == "idefics":
        inputs["pixel_values"] = inputs["pixel_values"][:, None]
        inputs["image_attention_mask"] = torch.ones(*ids.shape, 1, dtype=torch.long)
    if name.startswith("kosmos"):
        inputs["image_embeds_position_mask"] = (ids == IMAGE_TOKEN).long()
    return inputs


def _flattened(draw: torch.Generator) -> Tensor:
    patches = torch.randn(2, 9, 50, generator=draw)
    patches[..., 0], patches[..., 1] = torch.arange(9) // 3 + 1, torch.arange(9) % 3 + 1
    return patches
