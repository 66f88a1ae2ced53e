"""Tokenizer, chat template and generation config: the same for every architecture, but for the tokens of a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import GenerationConfig, PreTrainedTokenizerFast

from lvlm_guard.testbed.world.language import ASSISTANT, END, IMAGE, PAD, START, UNKNOWN, USER, vocabulary


def build_tokenizer(more: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Whole words only, lower case; punctuation may touch the word before it. `more` are special, after all others."""
    ids = {word: number for number, word in enumerate([*vocabulary(), *more])}
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
        additional_special_tokens=[IMAGE, *more],
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def chat_template(picture: str) -> str:
    """The template in which `picture` stands for a picture; pictures come before the words of their message."""
    return (
        "{% for message in messages %}"
        f"{{% if message['role'] == 'user' %}}{USER} {{% elif message['role'] == 'assistant' %}}{ASSISTANT} {{% endif %}}"
        "{% if message['content'] is string %}{{ message['content'] }} {% else %}"
        f"{{% for item in message['content'] %}}{{% if item['type'] == 'image' %}}{picture} {{% endif %}}{{% endfor %}}"
        "{% for item in message['content'] %}{% if item['type'] == 'text' %}{{ item['text'] }} {% endif %}{% endfor %}"
        "{% endif %}"
        "{% if message['role'] == 'assistant' %}<eos> {% endif %}"
        "{% endfor %}"
        f"{{% if add_generation_prompt %}}{ASSISTANT}{{% endif %}}"
    )


def build_generation_config(config: Any) -> GenerationConfig:
    """Greedy decoding with the token ids that start, end and pad a text."""
    text = config.text_config
    return GenerationConfig(
        bos_token_id=text.bos_token_id, eos_token_id=text.eos_token_id, pad_token_id=text.pad_token_id, do_sample=False
    )
