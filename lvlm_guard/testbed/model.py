"""The testbed's model: a small LLaVA, its tokenizer and processor, and the bundled weights."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from . import drawing
from .errors import TestbedError
from .language import ASSISTANT, END, IMAGE, PAD, START, UNKNOWN, USER, vocabulary

WEIGHTS = Path(__file__).parent / "weights"
FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "chat_template.jinja",
)
PATCH = 8
IMAGE_TOKENS = (drawing.SIDE // PATCH) ** 2
MEAN = 0.5
SPREAD = 0.25
"""Pixels reach the model as (value - MEAN) / SPREAD, where value runs from 0 to 1."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    f"{{% if message['role'] == 'user' %}}{USER} {{% elif message['role'] == 'assistant' %}}{ASSISTANT} {{% endif %}}"
    "{% if message['content'] is string %}{{ message['content'] }} {% else %}"
    "{% for item in message['content'] %}{% if item['type'] == 'image' %}<image> {% endif %}{% endfor %}"
    "{% for item in message['content'] %}{% if item['type'] == 'text' %}{{ item['text'] }} {% endif %}{% endfor %}"
    "{% endif %}"
    "{% if message['role'] == 'assistant' %}<eos> {% endif %}"
    "{% endfor %}"
    f"{{% if add_generation_prompt %}}{ASSISTANT}{{% endif %}}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words only, lower case; punctuation may touch the word before it."""
    ids = {word: number for number, word in enumerate(vocabulary())}
    inner = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    spaced = [normalizers.Replace(mark, f" {mark} ") for mark in (",", ".", "?")]
    inner.normalizer = normalizers.Sequence([normalizers.Lowercase(), *spaced])
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[(START, ids[START])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token=UNKNOWN,
        pad_token=PAD,
        bos_token=START,
        eos_token=END,
        additional_special_tokens=[IMAGE],
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def build_processor() -> LlavaProcessor:
    """Tokenizer, picture preparation and chat template in one, as a LLaVA checkpoint has them."""
    pictures = CLIPImageProcessor(
        do_resize=False,
        do_center_crop=False,
        size={"height": drawing.SIDE, "width": drawing.SIDE},
        crop_size={"height": drawing.SIDE, "width": drawing.SIDE},
        image_mean=[MEAN] * 3,
        image_std=[SPREAD] * 3,
    )
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=build_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=IMAGE,
        chat_template=CHAT_TEMPLATE,
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
        patch_size=PATCH,
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


def build_generation_config(config: LlavaConfig) -> GenerationConfig:
    """Greedy decoding with the token ids that start, end and pad a text."""
    text = config.text_config
    return GenerationConfig(
        bos_token_id=text.bos_token_id, eos_token_id=text.eos_token_id, pad_token_id=text.pad_token_id, do_sample=False
    )


def load(
    device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, folder: Path = WEIGHTS
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The bundled model, ready to generate, and its processor. Never goes to the network.

    Raises:
        TestbedError: a file is missing or cannot be read.
    """
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise TestbedError(
            f"testbed: {folder} lacks {', '.join(missing)}. Reinstall lvlm_guard, or train the weights again: "
            f"python -m lvlm_guard.testbed.train --out {folder}"
        )
    try:
        model, loaded = LlavaForConditionalGeneration.from_pretrained(
            folder, dtype=dtype, local_files_only=True, output_loading_info=True
        )
        processor = LlavaProcessor.from_pretrained(folder, local_files_only=True)
    except Exception as problem:
        raise TestbedError(
            f"testbed: the files in {folder} cannot be read ({type(problem).__name__}: {problem}). "
            f"Reinstall lvlm_guard, or train them again: python -m lvlm_guard.testbed.train --out {folder}"
        ) from problem
    untrained = sorted(loaded["missing_keys"])
    if untrained:
        raise TestbedError(
            f"testbed: {folder} has no weights for {', '.join(untrained[:3])} ({len(untrained)} in all)."
        )
    return model.to(device).eval(), processor
