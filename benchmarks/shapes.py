"""Random models in the shapes of public ones, built on the device without a network, and inputs for them."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor

TEXT_BEFORE, TEXT_AFTER = 36, 28
END_OF_TEXT, PADDING = 2, 0
_NEW_ROPE = int(transformers.__version__.split(".")[0]) >= 5


@dataclass(frozen=True)
class Shape:
    """A model's shape.

    Args:
        name: What the rows call it.
        model_class: Name of the class in transformers.
        config: Builds the config.
        image_token: Id of the image placeholder.
        image_tokens: Placeholders per image.
        image_size: Side of the square image in pixels.
        patch: Side of a patch where pixels come as flattened patches; 0 where they come as images.
        fences: Ids before and behind the placeholders.
    """

    name: str
    model_class: str
    config: Callable[[], Any]
    image_token: int
    image_tokens: int
    image_size: int
    patch: int = 0
    fences: tuple[int, ...] = ()

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt, image included."""
        return TEXT_BEFORE + TEXT_AFTER + len(self.fences) + self.image_tokens

    def build(self, device: torch.device, dtype: torch.dtype) -> Any:
        """A model with random weights, made on the device in `dtype`."""
        torch.manual_seed(0)
        with device, _default_dtype(dtype):
            model = getattr(transformers, self.model_class)(self.config())
        model.generation_config.eos_token_id = END_OF_TEXT
        model.generation_config.pad_token_id = PADDING
        return model.eval()

    def inputs(self, model: Any, batch: int, seed: int = 0) -> dict[str, Tensor]:
        """Inputs of `batch` rows without padding; every row has its own text and image."""
        draw = torch.Generator().manual_seed(seed)
        ids = self._ids(batch, draw)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **self._pixels(batch, draw)}
        inputs["mm_token_type_ids"] = (ids == self.image_token).long()
        accepted = inspect.signature(model.forward).parameters
        placed = {name: value.to(model.device) for name, value in inputs.items() if name in accepted}
        return {name: value.to(model.dtype) if value.is_floating_point() else value for name, value in placed.items()}

    def text_only(self, ids: Tensor) -> Tensor:
        """Prompt ids without the image and its fences."""
        kept = ~torch.isin(ids, torch.tensor([self.image_token, *self.fences], device=ids.device))
        return ids[kept].reshape(ids.shape[0], -1)

    def _ids(self, batch: int, draw: torch.Generator) -> Tensor:
        before, after = (torch.randint(3, 60, (batch, size), generator=draw) for size in (TEXT_BEFORE, TEXT_AFTER))
        image = torch.full((batch, self.image_tokens), self.image_token)
        edges = [torch.full((batch, 1), fence) for fence in self.fences]
        return torch.cat([before, *edges[:1], image, *edges[1:], after], dim=1)

    def _pixels(self, batch: int, draw: torch.Generator) -> dict[str, Tensor]:
        if not self.patch:
            return {"pixel_values": torch.randn(batch, 3, self.image_size, self.image_size, generator=draw)}
        side = self.image_size // self.patch
        patches = torch.randn(batch * side**2, 3, self.patch**2, generator=draw)
        still = patches[:, :, None].expand(-1, -1, 2, -1)  # a still image is two equal frames
        return {"pixel_values": still.flatten(1), "image_grid_thw": torch.tensor([[1, side, side]] * batch)}


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _text(hidden: int, ffn: int, layers: int, heads: int, kv_heads: int, vocabulary: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": 4096,
        "pad_token_id": PADDING,
        "bos_token_id": 1,
        "eos_token_id": END_OF_TEXT,
        "tie_word_embeddings": False,
    }


def _clip(hidden: int, layers: int, heads: int, image: int) -> dict[str, Any]:
    return {
        "model_type": "clip_vision_model",
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "image_size": image,
        "patch_size": 14,
        "projection_dim": hidden,
    }


def _llava(text: dict[str, Any], vision: dict[str, Any], image_token: int) -> Any:
    tokens = (vision["image_size"] // vision["patch_size"]) ** 2
    return transformers.LlavaConfig(
        text_config={"model_type": "llama", **text},
        vision_config=vision,
        image_token_index=image_token,
        image_seq_length=tokens,
        tie_word_embeddings=False,
    )


def _qwen(text: dict[str, Any], vision: dict[str, Any], sections: list[int], first_token: int) -> Any:
    rope = {"rope_type": "default", "mrope_section": sections}
    placed = {"rope_parameters": {**rope, "rope_theta": 1e6}} if _NEW_ROPE else {"rope_scaling": rope}
    names = ("vision_start_token_id", "vision_end_token_id", "vision_token_id", "image_token_id", "video_token_id")
    return transformers.Qwen2_5_VLConfig(
        text_config={**text, **placed},
        vision_config=vision,
        tie_word_embeddings=False,
        **{name: first_token + index for index, name in enumerate(names)},
    )


LLAVA_TINY = Shape(
    "tiny LLaVA",
    "LlavaForConditionalGeneration",
    lambda: _llava(_text(64, 128, 2, 4, 4, 512), _clip(32, 2, 4, 28), 511),
    image_token=511,
    image_tokens=4,
    image_size=28,
)
LLAVA_27M = Shape(
    "LLaVA, 27 M",
    "LlavaForConditionalGeneration",
    lambda: _llava(_text(384, 1024, 6, 6, 6, 16000), _clip(192, 4, 3, 336), 15999),
    image_token=15999,
    image_tokens=576,
    image_size=336,
)
LLAVA_135M = Shape(
    "LLaVA, 135 M",
    "LlavaForConditionalGeneration",
    lambda: _llava(_text(576, 1536, 22, 9, 3, 32000), _clip(384, 6, 6, 336), 31999),
    image_token=31999,
    image_tokens=576,
    image_size=336,
)
LLAVA_SMALL = Shape(
    "LLaVA, 0.4 B",
    "LlavaForConditionalGeneration",
    lambda: _llava(_text(1024, 2816, 24, 16, 16, 32000), _clip(384, 6, 6, 336), 31999),
    image_token=31999,
    image_tokens=576,
    image_size=336,
)
LLAVA_7B = Shape(
    "LLaVA-1.5-7B",
    "LlavaForConditionalGeneration",
    lambda: _llava(_text(4096, 11008, 32, 32, 32, 32064), _clip(1024, 24, 16, 336), 32000),
    image_token=32000,
    image_tokens=576,
    image_size=336,
)
LLAVA_7B_LAYERS = dataclasses.replace(
    LLAVA_7B,
    name="LLaVA-1.5-7B with 4 of its 32 layers",
    config=lambda: _llava(_text(4096, 11008, 4, 32, 32, 32064), _clip(1024, 24, 16, 336), 32000),
)
"""A step seven times as short: what a layer's work adds to a layer can be told sooner."""
QWEN_TINY = Shape(
    "tiny Qwen2.5-VL",
    "Qwen2_5_VLForConditionalGeneration",
    lambda: _qwen(
        _text(64, 128, 2, 4, 2, 512),
        {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 64, "num_heads": 4},
        [2, 3, 3],
        500,
    ),
    image_token=503,
    image_tokens=4,
    image_size=56,
    patch=14,
    fences=(500, 501),
)
QWEN_7B = Shape(
    "Qwen2.5-VL-7B",
    "Qwen2_5_VLForConditionalGeneration",
    lambda: _qwen(
        _text(3584, 18944, 28, 28, 4, 152064),
        {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 3584, "num_heads": 16},
        [16, 24, 24],
        151652,
    ),
    image_token=151655,
    image_tokens=576,
    image_size=672,
    patch=14,
    fences=(151652, 151653),
)
