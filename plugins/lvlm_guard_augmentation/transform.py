"""Show the model a changed picture in place of the user's."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from PIL import Image, ImageFilter
from pydantic import Field
from torch import Generator, Tensor

from lvlm_guard import Generation, InputEdit, hookimpl
from lvlm_guard.fields import Seed, Share

GRID = 8


@dataclass(frozen=True)
class Transform:
    """Noise, blur, crop or mask the picture before it is encoded; a control, and a building block.

    Covers the input transforms that branches use elsewhere (RITUAL, AGLA, ViCrop), on main itself. At strength s:
    `noise` adds s times standard normal noise to the preprocessed pixels, `blur` is Gaussian with a radius of s / 8 of
    the longer side, `crop` cuts a random window with 1 - s of the area (never below 1%) and enlarges it, `mask` greys
    s of the cells of an 8 x 8 grid. `strength = 0` is neutral.
    """

    name: ClassVar[str] = "transform"
    family: ClassVar[str] = "augmentation"
    paper: ClassVar[str] = "none"
    cost: ClassVar[str] = "none"
    neutral: ClassVar[dict[str, float]] = {"strength": 0.0}

    kind: Annotated[Literal["noise", "blur", "crop", "mask"], Field(description="what happens to it")] = "noise"
    strength: Annotated[Share, Field(description="how much of it")] = 0.5
    seed: Seed = 0

    @hookimpl
    def edit_inputs(self, gen: Generation) -> Iterable[InputEdit]:
        """Return one edit for every image."""
        if self.kind == "noise":
            yield InputEdit(pixels=self._add_noise, seed=self.seed)
        else:
            change = {"blur": self._blur, "crop": self._crop, "mask": self._mask}[self.kind]
            yield InputEdit(picture=change, seed=self.seed)

    def _add_noise(self, pixels: Tensor, generator: Generator) -> Tensor:
        noise = torch.randn(pixels.shape, generator=generator, dtype=torch.float32).to(pixels.device)
        return pixels + self.strength * noise

    def _blur(self, picture: Any, generator: Generator) -> Any:
        return picture.filter(ImageFilter.GaussianBlur(self.strength * max(picture.size) / 8))

    def _crop(self, picture: Any, generator: Generator) -> Any:
        share = max(1 - self.strength, 0.01) ** 0.5
        width, height = (max(round(side * share), 1) for side in picture.size)
        across, down = torch.rand(2, generator=generator).tolist()
        left, top = round(across * (picture.width - width)), round(down * (picture.height - height))
        return picture.crop((left, top, left + width, top + height)).resize(picture.size)

    def _mask(self, picture: Any, generator: Generator) -> Any:
        hidden = torch.randperm(GRID * GRID, generator=generator)[: round(self.strength * GRID * GRID)]
        cells = torch.zeros(GRID * GRID, dtype=torch.uint8).index_fill(0, hidden, 255).view(GRID, GRID)
        where = Image.fromarray(cells.numpy()).resize(picture.size, Image.Resampling.NEAREST)
        return Image.composite(Image.new("RGB", picture.size, (128, 128, 128)), picture.convert("RGB"), where)
