"""EfficientNet-Lite0 as a vision tower: 49 tokens of 1280 channels from a picture of 224 pixels, as LLaVA takes them.

Batch norms are folded into the convolutions, and the classifier is left out. A table of learned places is added to the last
features: a projector sees one token at a time, and would not know where it is.

Source: Tan and Le, EfficientNet, 2019 (arXiv 1905.11946); the Lite variant has no squeeze-and-excitation and clips at 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad, relu6
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
"""Of each stage: blocks, kernel, stride of the first block, expansion, channels."""

SIDE = 224
PATCH = 32
TOKENS = (SIDE // PATCH) ** 2
CHANNELS = 1280


class Lite0Config(PretrainedConfig):
    """Shape of the tower.

    Args:
        stages: As `STAGES`.
        stem: Channels of the first convolution.
        hidden_size: Channels of a token.
        image_size: Side of a picture, in pixels.
        patch_size: Pixels between two tokens.
        num_channels: Colours of a pixel.
        num_hidden_layers: Convolutions with a place of their own in `hidden_states`: the features, and those with places.
    """

    model_type = "collage_lite0"

    def __init__(
        self,
        stages: Sequence[Sequence[int]] = STAGES,
        stem: int = 32,
        hidden_size: int = CHANNELS,
        image_size: int = SIDE,
        patch_size: int = PATCH,
        num_channels: int = 3,
        num_hidden_layers: int = 1,
        **settings: Any,
    ) -> None:
        self.stages = [list(stage) for stage in stages]
        self.stem = stem
        self.hidden_size = hidden_size
        self.image_size = image_size
        self.patch_size = patch_size
        self.num_channels = num_channels
        self.num_hidden_layers = num_hidden_layers
        super().__init__(**settings)


class PaddedConvolution(nn.Conv2d):
    """A convolution whose output is the input's size divided by the stride; what does not fit evenly is padded at the end."""

    def __init__(self, inside: int, outside: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inside, outside, kernel, stride, groups=groups)

    def forward(self, pixels: Tensor) -> Tensor:
        """Shape (batch, channels, height, width) in and out."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        missing = [max((-(-length // stride) - 1) * stride + kernel - length, 0) for length in pixels.shape[-1:-3:-1]]
        edges = [edge for total in missing for edge in (total // 2, total - total // 2)]
        return conv2d(pad(pixels, edges), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class LiteBlock(nn.Module):
    """Widen, look round, narrow; added to the input where that has the same shape."""

    def __init__(self, inside: int, outside: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inside * expansion
        self.expand = PaddedConvolution(inside, wide, 1) if expansion > 1 else None
        self.depthwise = PaddedConvolution(wide, wide, kernel, stride, groups=wide)
        self.reduce = PaddedConvolution(wide, outside, 1)
        self.residual = stride == 1 and inside == outside

    def forward(self, pixels: Tensor) -> Tensor:
        """Shape (batch, channels, height, width) in and out."""
        wide = pixels if self.expand is None else relu6(self.expand(pixels))
        narrow = self.reduce(relu6(self.depthwise(wide)))
        return pixels + narrow if self.residual else narrow


class Lite0Model(PreTrainedModel):
    """The tower. `hidden_states` are the features without and with their places, each (batch, tokens, channels)."""

    config_class = Lite0Config
    main_input_name = "pixel_values"
    base_model_prefix = "lite0"
    _no_split_modules: ClassVar[list[str]] = ["LiteBlock"]

    def __init__(self, config: Lite0Config) -> None:
        super().__init__(config)
        self.stem = PaddedConvolution(config.num_channels, config.stem, 3, 2)
        self.blocks = nn.ModuleList(_blocks(config))
        self.head = PaddedConvolution(config.stages[-1][-1], config.hidden_size, 1)
        tokens = (config.image_size // config.patch_size) ** 2
        self.places = nn.Parameter(torch.zeros(tokens, config.hidden_size))
        self.post_init()

    def features(self, pixels: Tensor) -> Tensor:
        """Pixels (batch, 3, side, side) to features (batch, tokens, channels), row by row, without places."""
        maps = relu6(self.stem(pixels))
        for block in self.blocks:
            maps = block(maps)
        tokens: Tensor = relu6(self.head(maps)).flatten(2).transpose(1, 2)
        return tokens

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """Pixels (batch, 3, side, side) to tokens (batch, tokens, channels); hidden states are always given.

        Raises:
            ValueError: The pictures are of another size.
        """
        side = self.config.image_size
        if tuple(pixel_values.shape[-2:]) != (side, side):
            raise ValueError(f"Lite0Model takes pictures of {side} x {side} pixels, got {tuple(pixel_values.shape)}.")
        features = self.features(pixel_values.to(self.places.dtype))
        placed = features + self.places
        return BaseModelOutputWithPooling(
            last_hidden_state=placed, pooler_output=placed.mean(1), hidden_states=(features, placed)
        )

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")


def _blocks(config: Lite0Config) -> list[LiteBlock]:
    blocks, inside = [], config.stem
    for count, kernel, stride, expansion, outside in config.stages:
        for at in range(count):
            blocks.append(LiteBlock(inside, outside, kernel, 1 if at else stride, expansion))
            inside = outside
    return blocks


AutoConfig.register(Lite0Config.model_type, Lite0Config, exist_ok=True)
AutoModel.register(Lite0Config, Lite0Model, exist_ok=True)
