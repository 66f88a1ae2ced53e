"""Tiny models with processors of transformers, saved to folders as users have them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from versions import skip

from lvlm_guard.testbed.architectures.processing import PictureProcessor
from lvlm_guard.testing.tiny import IMAGE_TOKEN, VISION_END, VISION_START, VOCABULARY, tiny
from lvlm_guard.verification.prompts import LONGER, PROMPT, SHORTER

SPECIAL = {
    "<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "<boi>": 98, "<eoi>": 99, "<image>": IMAGE_TOKEN, "<fence>": 98,
    "<start>": VISION_START, "<end>": VISION_END,
}  # fmt: skip
TEMPLATE = (
    "{% for message in messages %}user: {% for item in message['content'] %}"
    "{% if item['type'] == 'image' %}IMAGE{% else %}{{ item['text'] }}{% endif %}{% endfor %}{% endfor %} assistant:"
)


def save_model(name: str, folder: Path) -> Path:
    """Save the tiny model of an architecture with its processor, and return the folder."""
    model: Any = tiny(name)[0]
    model.generation_config.pad_token_id = 0
    model.save_pretrained(folder)
    PROCESSORS[name]().save_pretrained(folder)
    return folder


def _tokenizer(**special: str) -> Any:
    words = [word for text in (PROMPT, SHORTER, LONGER, "user : assistant") for word in _split(text)]
    ids = {token: index for token, index in SPECIAL.items() if token in {*BASIC, *special.values()}}
    free = (index for index in range(VOCABULARY) if index not in SPECIAL.values())
    ids |= {word: next(free) for word in dict.fromkeys(words)}
    ids |= {f"word{index}": index for index in range(VOCABULARY) if index not in ids.values()}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        padding_side="left", extra_special_tokens=special, model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


BASIC = ("<pad>", "<s>", "</s>", "<unk>", "<image>")


def _split(text: str) -> list[str]:
    return [word for word, _ in pre_tokenizers.Whitespace().pre_tokenize_str(text)]


def _template(image: str) -> str:
    return TEMPLATE.replace("IMAGE", image)


def make_picture_processor(name: str, **settings: Any) -> Any:
    """Return a processor of pictures that needs no torchvision; older versions of transformers have one class for both."""
    made_by = getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)
    try:
        return made_by(**settings)
    except ImportError:
        skip(f"no {name} without torchvision")


def _llava() -> Any:
    pictures = make_picture_processor(
        "CLIPImageProcessor", size={"shortest_edge": 30}, crop_size={"height": 30, "width": 30}
    )
    return transformers.LlavaProcessor(
        pictures, _tokenizer(image_token="<image>"), patch_size=6, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=_template("<image>"),
    )  # fmt: skip


def _qwen2_vl() -> Any:
    pictures = make_picture_processor(
        "Qwen2VLImageProcessor", min_pixels=16**2, max_pixels=24**2, patch_size=4, merge_size=2, temporal_patch_size=2
    )
    tokenizer = _tokenizer(image_token="<image>", start_token="<start>", end_token="<end>")
    return PictureProcessor(pictures, tokenizer, _template("<start><image><end>"), "<image>")


def _gemma3() -> Any:
    pictures = make_picture_processor("Gemma3ImageProcessor", size={"height": 20, "width": 20})
    tokenizer = _tokenizer(image_token="<image>", boi_token="<boi>", eoi_token="<eoi>")
    return transformers.Gemma3Processor(pictures, tokenizer, image_seq_length=4, chat_template=_template("<boi>"))


def _mllama() -> Any:
    pictures = make_picture_processor("MllamaImageProcessor", size={"height": 30, "width": 30}, max_image_tiles=1)
    tokenizer = _tokenizer(image_token="<image>")
    return transformers.MllamaProcessor(pictures, tokenizer, chat_template=_template("<image>"))


def _idefics3() -> Any:
    pictures = make_picture_processor(
        "Idefics3ImageProcessor",
        size={"longest_edge": 16},
        max_image_size={"longest_edge": 16},
        do_image_splitting=False,
    )
    tokenizer = _tokenizer(image_token="<image>", fake_image_token="<fence>", global_image_token="<start>")
    return transformers.Idefics3Processor(pictures, tokenizer, image_seq_len=4, chat_template=_template("<image>"))


PROCESSORS: dict[str, Callable[[], Any]] = {
    "llava": _llava,
    "qwen2_vl": _qwen2_vl,
    "gemma3": _gemma3,
    "mllama": _mllama,
    "idefics3": _idefics3,
}
