"""A processor for the tiny llava: words are token ids, pictures are 30 x 30."""

from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerFast

SIDE = {"height": 30, "width": 30}
TEMPLATE = (
    "{% for message in messages %}{{ message.role }} : {% for item in message.content %}"
    "{% if item.type == 'image' %}<image> {% else %}{{ item.text }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)


def toy_processor() -> Any:
    words = ["<pad>", "<bos>", "<eos>", "<unk>", ":", "user", "assistant", "abcdef", *"abcdefghijklmnopqrstuvwxyz"]
    vocabulary = {word: index for index, word in enumerate(words)}
    vocabulary |= {f"w{index}": index for index in range(len(words), 128) if index != 100}
    vocabulary["<image>"] = 100
    model = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    model.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model,
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
        extra_special_tokens={"image_token": "<image>"},
        model_input_names=["input_ids", "attention_mask"],
    )
    images = CLIPImageProcessor(size=SIDE, crop_size=SIDE, do_center_crop=False)
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=6,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
