"""RITUAL: add the logits for a randomly transformed picture."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import torch
from PIL import Image, ImageEnhance, ImageFilter
from pydantic import Field
from torch import Generator

from lvlm_guard import Branch, Generation, Mix, Plausible, Term, hookimpl
from lvlm_guard.fields import Plausibility, Seed, Strength

Transform: TypeAlias = Literal["flip", "flop", "rotate", "colour", "blur", "crop"]
EVERY: tuple[Transform, ...] = ("flip", "flop", "rotate", "colour", "blur", "crop")


@dataclass(frozen=True)
class RITUAL:
    """Add the logits under one random transform of the picture: `z + kappa z+` on plausible tokens.

    Woo et al., arXiv 2405.17821. One of six transforms per image, each as likely: left-right flip, up-down flip,
    rotation by up to 180 degrees, colour jitter (brightness, contrast, saturation up to 1, hue up to 0.5), Gaussian
    blur of sigma 1.5 to 2, random resized crop. The crop has the size of the picture, where the released code
    makes it 336 x 336 before a processor that resizes to that anyway. The sum is not normalised: kappa 3 also
    sharpens, so hold it against a matched temperature. `kappa = 0` is neutral.
    """

    name: ClassVar[str] = "ritual"
    family: ClassVar[str] = "contrastive"
    paper: ClassVar[str] = "arXiv 2405.17821"
    cost: ClassVar[str] = "one branch"
    neutral: ClassVar[dict[str, float]] = {"kappa": 0.0}
    contrast_strength: ClassVar[str] = "kappa"

    kappa: Annotated[Strength, Field(description="weight of the transformed picture")] = 3.0
    beta: Plausibility = 0.1
    transforms: Annotated[
        tuple[Transform, ...], Field(min_length=1, max_length=100, description="what is drawn from")
    ] = EVERY
    seed: Seed = 0

    @hookimpl
    def branches(self, gen: Generation) -> Iterable[Branch]:
        """Add a branch that sees a transformed picture."""
        yield Branch(self._key, picture=self._transform, seed=self.seed, depends_on_end=False)

    @hookimpl
    def terms(self, gen: Generation) -> Iterable[Term]:
        """Add the transformed branch to main, on plausible tokens."""
        yield Mix(self._key, self.kappa)
        yield Plausible(self.beta)

    @property
    def _key(self) -> tuple[object, ...]:
        return ("random transform", self.transforms, self.seed)

    def _transform(self, picture: Any, generator: Generator) -> Any:
        index = int(torch.randint(len(self.transforms), (), generator=generator))
        return TRANSFORMS[self.transforms[index]](picture.convert("RGB"), generator)


def uniform(low: float, high: float, generator: Generator) -> float:
    """Draw a number from the generator."""
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def rotate(picture: Image.Image, generator: Generator) -> Image.Image:
    """Rotate by up to 180 degrees either way; corners are black."""
    return picture.rotate(uniform(-180, 180, generator))


def jitter(picture: Image.Image, generator: Generator) -> Image.Image:
    """Change brightness, contrast, saturation and hue, in a random order."""
    steps: list[Callable[[Image.Image], Image.Image]] = [
        lambda image: ImageEnhance.Brightness(image).enhance(uniform(0, 2, generator)),
        lambda image: ImageEnhance.Contrast(image).enhance(uniform(0, 2, generator)),
        lambda image: ImageEnhance.Color(image).enhance(uniform(0, 2, generator)),
        lambda image: turn_hue(image, uniform(-0.5, 0.5, generator)),
    ]
    for index in torch.randperm(len(steps), generator=generator).tolist():
        picture = steps[index](picture)
    return picture


def turn_hue(picture: Image.Image, share: float) -> Image.Image:
    """Turn the hue by a share of the colour circle."""
    hue, saturation, value = picture.convert("HSV").split()
    step = round(share * 255)
    return Image.merge("HSV", (hue.point(lambda level: (level + step) % 256), saturation, value)).convert("RGB")


def blur(picture: Image.Image, generator: Generator) -> Image.Image:
    """Blur with a Gaussian of sigma 1.5 to 2."""
    return picture.filter(ImageFilter.GaussianBlur(uniform(1.5, 2, generator)))


def crop(picture: Image.Image, generator: Generator) -> Image.Image:
    """Enlarge a window of 8 to 100 % of the area and ratio 3/4 to 4/3, as far as it fits, to the picture's size."""
    area = picture.width * picture.height * uniform(0.08, 1, generator)
    ratio = (4 / 3) ** uniform(-1, 1, generator)
    width, height = min((area * ratio) ** 0.5, picture.width), min((area / ratio) ** 0.5, picture.height)
    left, top = uniform(0, picture.width - width, generator), uniform(0, picture.height - height, generator)
    box = (left, top, left + width, top + height)
    return picture.resize(picture.size, Image.Resampling.BILINEAR, box=box)


TRANSFORMS: Mapping[Transform, Callable[[Image.Image, Generator], Image.Image]] = {
    "flip": lambda picture, _: picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "flop": lambda picture, _: picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    "rotate": rotate,
    "colour": jitter,
    "blur": blur,
    "crop": crop,
}
