"""The parts put together as a LLaVA, before it was taught to see: the projector is random until a delta is applied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPImageProcessor,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from lvlm_guard.testbed.collage.chat import TEMPLATE
from lvlm_guard.testbed.collage.language_model import IMAGE, LanguageFile
from lvlm_guard.testbed.collage.vision import PATCH, SIDE, TOKENS, Lite0Config
from lvlm_guard.testbed.collage.vision_weights import read_vision_weights

MEAN, SPREAD = 127 / 255, 128 / 255
"""What EfficientNet-Lite takes from a pixel between 0 and 1, and divides it by."""


def assemble(language: Path, vision: Path) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Return the model, in fp32 and ready to generate, and its processor.

    Args:
        language: The GGUF file of the language model.
        vision: The weights of EfficientNet-Lite0.

    Raises:
        InputError: `gguf` is not installed.
        TestbedError: A file cannot be read, or does not hold what is expected.
    """
    file = LanguageFile(language)
    model = build_model(file.config(), Lite0Config())
    load_weights(model, file.weights(), read_vision_weights(vision))
    return model, build_processor(file.tokenizer())


def build_model(text: Any, vision: Lite0Config) -> LlavaForConditionalGeneration:
    """Return an untrained LLaVA of a language model and a tower; the picture's token is the last of the vocabulary."""
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=text.vocab_size - 1,
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        projector_hidden_act="gelu",
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        bos_token_id=text.bos_token_id, eos_token_id=text.eos_token_id, pad_token_id=text.pad_token_id
    )
    return model.eval()


def load_weights(model: LlavaForConditionalGeneration, language: dict[str, Tensor], vision: dict[str, Tensor]) -> None:
    """Put the weights of both parts in; every weight but the projector and the table of places has to be among them."""
    model.model.language_model.load_state_dict(language)
    model.model.vision_tower.load_state_dict({**vision, "places": model.model.vision_tower.places})
    model.tie_weights()


def build_processor(tokenizer: Any, side: int = SIDE, patch: int = PATCH) -> LlavaProcessor:
    """Return tokenizer, picture preparation and chat template in one, as a LLaVA checkpoint has them."""
    pictures = CLIPImageProcessor(
        do_resize=True,
        size={"height": side, "width": side},
        do_center_crop=False,
        crop_size={"height": side, "width": side},
        image_mean=[MEAN] * 3,
        image_std=[SPREAD] * 3,
    )
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        image_token=IMAGE,
        chat_template=TEMPLATE,
    )


__all__ = ["TOKENS", "assemble", "build_model", "build_processor", "load_weights"]
