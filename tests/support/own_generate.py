"""Models whose class has a generate of its own, as checkpoints with code of their own bring it."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import LlavaConfig, PreTrainedModel

from lvlm_guard.testing.tiny import ARCHITECTURES, IMAGE_TOKEN, boost

PATCH = 10
PLACE = -200
"""What stands for an image in prompts of the signature `generate(inputs, images=...)`; no embedding belongs to it."""


class OnlyNewTokens(transformers.LlavaForConditionalGeneration):  # type: ignore[misc]
    """A LLaVA that returns answers without prompts."""

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Return new tokens alone."""
        output = super().generate(*args, **kwargs)
        prompt = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        return output[:, prompt.shape[1] :] if isinstance(output, Tensor) else output


class Reader(PreTrainedModel):  # type: ignore[misc]
    """A vision encoder and a language model that generates from embeddings; the class itself is no `GenerationMixin`."""

    config_class = LlavaConfig
    _no_split_modules = ("LlamaDecoderLayer",)

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.encoder = nn.Linear(3 * PATCH * PATCH, config.text_config.hidden_size)
        self.language_model = transformers.LlamaForCausalLM(config.text_config)
        self.post_init()

    def encode(self, pixels: Tensor) -> Tensor:
        """Return features `[images, patches, hidden]` of pixels `[images, 3, 30, 30]`."""
        patches = pixels.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).flatten(2, 3)
        features: Tensor = self.encoder(patches.permute(0, 2, 1, 3, 4).flatten(2))
        return features

    def embed(self, input_ids: Tensor, pixels: Tensor) -> Tensor:
        """Return embeddings of prompts with an image in place of their placeholders."""
        image = input_ids == IMAGE_TOKEN
        embeds: Tensor = self.language_model.get_input_embeddings()(input_ids.masked_fill(image, 0))
        return embeds.masked_scatter(image[..., None], self.encode(pixels).to(embeds))


class WithKeywords(Reader):
    """`generate(pixel_values, input_ids, attention_mask, **generate_kwargs)`, as InternVL's own code has it."""

    @torch.no_grad()
    def generate(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        generation_config: Any = None,
        **generate_kwargs: Any,
    ) -> Any:
        """Return new tokens alone."""
        assert input_ids is not None
        assert pixel_values is not None
        return self.language_model.generate(
            inputs_embeds=self.embed(input_ids, pixel_values),
            attention_mask=attention_mask,
            generation_config=generation_config,
            **generate_kwargs,
        )


class WithImages(Reader):
    """`generate(inputs, images=...)`, as LLaVA's own code has it: one placeholder an image, widened inside."""

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, images: Tensor | None = None, **kwargs: Any) -> Any:
        """Return new tokens alone."""
        if "inputs_embeds" in kwargs or "input_ids" in kwargs:
            raise NotImplementedError("`inputs_embeds` and `input_ids` are not supported")
        assert inputs is not None
        kwargs.pop("attention_mask", None)
        embed = self.language_model.get_input_embeddings()
        if images is None:
            return self.language_model.generate(inputs_embeds=embed(inputs), **kwargs)
        rows = []
        for row, features in zip(inputs, self.encode(images), strict=True):
            at = int((row == PLACE).nonzero())
            rows.append(torch.cat([embed(row[:at]), features, embed(row[at + 1 :])]))
        return self.language_model.generate(inputs_embeds=torch.stack(rows), **kwargs)


class InWords(OnlyNewTokens):
    """A class that returns text."""

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Return a list of texts."""
        return [" ".join(map(str, row)) for row in super().generate(*args, **kwargs).tolist()]


class Boasting(OnlyNewTokens):
    """Puts ids of its own in front."""

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Return two unknown ids, then new tokens."""
        output = super().generate(*args, **kwargs)
        return torch.cat([torch.full((len(output), 2), 7), output], dim=1)


def build(kind: type[Any]) -> tuple[Any, dict[str, Tensor]]:
    """Return a tiny model of one of these classes and inputs of one row under the names it takes."""
    config = ARCHITECTURES["llava"].build()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(config).eval()
        boost(model)
    draw = torch.Generator().manual_seed(0)
    text = torch.randint(5, 60, (1, 8), generator=draw)
    pixels = torch.randn(1, 3, 30, 30, generator=draw)
    if kind is WithImages:
        return model, {
            "inputs": torch.cat([text[:, :2], torch.tensor([[PLACE]]), text[:, 2:]], dim=1),
            "images": pixels,
        }
    places = torch.full((1, 9 if issubclass(kind, Reader) else 25), IMAGE_TOKEN)
    ids = torch.cat([text[:, :2], places, text[:, 2:]], dim=1)
    return model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


__all__ = ["Boasting", "InWords", "OnlyNewTokens", "WithImages", "WithKeywords", "build"]
