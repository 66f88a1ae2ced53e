"""A tiny model of the collage world: same classes and prompts, a language model of two layers that knows bytes."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from lvlm_guard.testbed.collage.assembly import build_model, build_processor
from lvlm_guard.testbed.collage.chat import TEMPLATE
from lvlm_guard.testbed.collage.language_model import IMAGE
from lvlm_guard.testbed.collage.vision import Lite0Config

STAGES = ((1, 3, 1, 1, 8), (1, 3, 2, 2, 8), (1, 5, 2, 2, 8), (1, 3, 2, 2, 8), (1, 5, 2, 2, 8))
CHANNELS = 24


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, and the tokens of the chat."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    inner = Tokenizer(models.BPE({word: at for at, word in enumerate([*special, *letters])}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(word, special=True) for word in (*special, IMAGE)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        additional_special_tokens=[IMAGE],
        model_input_names=["input_ids", "attention_mask"],
        padding_side="left",
        chat_template=TEMPLATE,
    )


def tiny_model(seed: int = 0) -> tuple[Any, Any]:
    """An untrained model and its processor; pictures of 224 pixels have 49 tokens."""
    tokenizer = tiny_tokenizer()
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.3,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = build_model(text, Lite0Config(stages=STAGES, stem=8, hidden_size=CHANNELS))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.model.vision_tower.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * (0.3 if weight.ndim > 1 else 0.1))
        for weight in model.model.multi_modal_projector.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    return model, build_processor(tokenizer)
