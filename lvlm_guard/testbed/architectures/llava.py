"""A small LLaVA: a CLIP tower with a class token, a two-layer projector, a Llama; one position per token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from lvlm_guard.testbed.architectures.architecture import Architecture, VisionEncoder
from lvlm_guard.testbed.architectures.picture import IMAGE_TOKENS, MEAN, SPREAD, TOKEN, Span
from lvlm_guard.testbed.architectures.tokenizer import build_generation_config, build_tokenizer, chat_template
from lvlm_guard.testbed.world import drawing
from lvlm_guard.testbed.world.language import END, IMAGE, PAD, START, vocabulary

SPAN = Span(positions=(tuple(range(IMAGE_TOKENS)),), advance=IMAGE_TOKENS)


def build_processor() -> LlavaProcessor:
    """Tokenizer, picture preparation and chat template in one, as a LLaVA checkpoint has them."""
    pictures = CLIPImageProcessor(
        do_resize=True,
        do_center_crop=False,
        size={"height": drawing.SIDE, "width": drawing.SIDE},
        crop_size={"height": drawing.SIDE, "width": drawing.SIDE},
        image_mean=[MEAN] * 3,
        image_std=[SPREAD] * 3,
    )
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=build_tokenizer(),
        patch_size=TOKEN,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=IMAGE,
        chat_template=chat_template(IMAGE),
    )


def build_config(*, hidden: int = 128, layers: int = 8, heads: int = 2, tower_layers: int = 4) -> LlavaConfig:
    """The model's shape; the arguments exist for tests that want it smaller."""
    words = vocabulary()
    vision = CLIPVisionConfig(
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=tower_layers,
        num_attention_heads=max(1, hidden // 32),
        image_size=drawing.SIDE,
        patch_size=TOKEN,
        projection_dim=hidden,
    )
    text = LlamaConfig(
        vocab_size=len(words),
        hidden_size=hidden,
        intermediate_size=int(hidden * 2.75),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=512,
        initializer_range=0.06,
        tie_word_embeddings=False,
        bos_token_id=words.index(START),
        eos_token_id=words.index(END),
        pad_token_id=words.index(PAD),
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=words.index(IMAGE),
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=False,
    )


def build_model(config: LlavaConfig, seed: int) -> LlavaForConditionalGeneration:
    """An untrained model: branches that write to the residual stream start small, the projector loses nothing."""
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for layer in (model.model.multi_modal_projector.linear_1, model.model.multi_modal_projector.linear_2):
            torch.nn.init.orthogonal_(layer.weight)
        for layer in model.model.language_model.layers:
            layer.self_attn.o_proj.weight.mul_(0.4)
            layer.mlp.down_proj.weight.mul_(0.4)
    model.generation_config = build_generation_config(config)
    return model


def _tower(model: LlavaForConditionalGeneration) -> nn.Module:
    return model.model.vision_tower


def _width(config: LlavaConfig) -> int:
    width: int = config.vision_config.hidden_size
    return width


def _vision_encoder(model: LlavaForConditionalGeneration) -> VisionEncoder:
    tower = model.model.vision_tower
    return lambda pixels: tower(pixels).last_hidden_state


def _project(model: LlavaForConditionalGeneration, features: Tensor) -> Tensor:
    image: Tensor = model.model.multi_modal_projector(features)
    return image


def _prepare_tower(model: LlavaForConditionalGeneration) -> Sequence[nn.Module]:
    """Return the whole tower; on a CPU without the fused kernel, whose backward takes a third longer there."""
    tower = model.model.vision_tower
    if tower.device.type == "cpu":
        tower.set_attn_implementation("eager")
    return (tower,)


LLAVA = Architecture(
    name="llava",
    parts="a CLIP tower, a projector and a Llama",
    model=LlavaForConditionalGeneration,
    processor=LlavaProcessor,
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
    published=(
        ("model.vision_tower.vision_model.", "vision_tower.vision_model."),
        ("model.vision_tower.", "vision_tower.vision_model."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
        ("model.language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
    ),
    minutes=45.0,
)
