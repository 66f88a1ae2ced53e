"""A processor for Qwen2-VL and pictures alone: the one of transformers needs torchvision, for videos.

It travels with the model's folder as the code of its processor, so it imports nothing of this project.
"""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

from transformers import BatchFeature, ProcessorMixin, Qwen2VLForConditionalGeneration


class PictureProcessor(ProcessorMixin):
    """Tokenizer and picture preparation in one: what it returns goes into Qwen2-VL as it is.

    Args:
        image_processor: A `Qwen2VLImageProcessor`.
        tokenizer: A tokenizer that knows `image_token`.
        chat_template: Jinja template of a conversation.
        image_token: What stands for a picture in a text; each becomes as many as the picture has tokens.
    """

    attributes: ClassVar[list[str]] = ["image_processor", "tokenizer"]
    image_processor_class = "AutoImageProcessor"
    tokenizer_class = "AutoTokenizer"

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        chat_template: str | None = None,
        image_token: str = "<image>",  # noqa: S107 - a token of the text
    ) -> None:
        self.image_token = image_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def __call__(
        self,
        images: Any = None,
        text: Any = None,
        *,
        return_tensors: str | None = None,
        videos: None = None,
        audio: None = None,
        **options: Any,
    ) -> BatchFeature:
        """Token ids and patches, as `generate` takes them; `options` go to the tokenizer.

        Raises:
            ValueError: The texts do not ask for as many pictures as there are, or there is a video or a sound.
        """
        if videos is not None or audio is not None:
            raise ValueError("this processor takes text and pictures, no videos and no audio.")
        pictures = {} if images is None else dict(self.image_processor(images, return_tensors="pt"))
        encoded = dict(self.tokenizer(self._expanded(text, pictures), **options))
        if _TYPED:
            rows = encoded["input_ids"]
            encoded["mm_token_type_ids"] = [[int(token == self.image_token_id) for token in row] for row in rows]
        return BatchFeature({**encoded, **pictures}, tensor_type=return_tensors)

    def _expanded(self, text: Any, pictures: dict[str, Any]) -> list[str]:
        """The texts with one placeholder per image token."""
        texts = [text] if isinstance(text, str) else list(text)
        counts = [int(grid.prod()) // self.image_processor.merge_size**2 for grid in pictures.get("image_grid_thw", ())]
        places = sum(text.count(self.image_token) for text in texts)
        if places != len(counts):
            raise ValueError(f"the texts have {places} times {self.image_token}, but there are {len(counts)} pictures.")
        left = iter(counts)
        return [self._expand(text, left) for text in texts]

    def _expand(self, text: str, left: Any) -> str:
        first, *following = text.split(self.image_token)
        return first + "".join(self.image_token * next(left) + piece for piece in following)

    @property
    def model_input_names(self) -> list[str]:
        """What it returns."""
        typed = ["mm_token_type_ids"] if _TYPED else []
        return [*self.tokenizer.model_input_names, *self.image_processor.model_input_names, *typed]


_TYPED = "mm_token_type_ids" in inspect.signature(Qwen2VLForConditionalGeneration.forward).parameters
"""Whether this version of transformers needs to know which tokens are image tokens."""
