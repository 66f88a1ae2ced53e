"""The components of a model in the order in which the picture comes through them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from lvlm_guard.diagnosis.verdict import Culprit, Stage

Name = Literal[
    "pixels",
    "patches",
    "tower",
    "projector",
    "image_mass",
    "head",
    "attention",
    "mlp",
    "residual",
    "output",
    "decoding",
]
STAGES: dict[Name, Stage] = {
    "pixels": "input",
    "patches": "tower",
    "tower": "tower",
    "projector": "projector",
    "image_mass": "attention",
    "head": "decoder",
    "attention": "decoder",
    "mlp": "decoder",
    "residual": "decoder",
    "output": "output",
    "decoding": "decoding",
}
OUTSIDE: tuple[Name, ...] = ("pixels", "patches", "tower", "projector")
INSIDE: tuple[Name, ...] = ("image_mass", "head", "attention", "mlp", "residual")
BEHIND: tuple[Name, ...] = ("output", "decoding")
WORDS: dict[str, str] = {"image_mass": "attention to the image", "mlp": "feed-forward", "residual": "residual stream"}


@dataclass(frozen=True)
class Component:
    """One component.

    Args:
        name: What it is. `patches` is what enters the layers of the tower, `tower` what each of them returns, `projector` what enters
            the decoder where the image is. `image_mass` is how much a layer's heads attend to the image, `head` what one of them returns,
            `attention` and `mlp` what the blocks add to the residual stream, `residual` what else is added to it.
        layer: Its layer, counted from 0.
        head: Its head, counted from 0.
    """

    name: Name
    layer: int | None = None
    head: int | None = None

    @property
    def order(self) -> tuple[int, int, int, int]:
        """Where it comes: smaller is earlier."""
        place = (OUTSIDE + INSIDE + BEHIND).index(self.name)
        room = 1 if self.name in INSIDE else 0 if self.name in OUTSIDE else 2
        layer, head = -1 if self.layer is None else self.layer, -1 if self.head is None else self.head
        return (room, layer, place, head) if room == 1 else (room, place, layer, head)

    @property
    def key(self) -> str:
        """Its name in files, such as `head.3.1`."""
        return ".".join(str(part) for part in (self.name, self.layer, self.head) if part is not None)

    @classmethod
    def parse(cls, key: str) -> Component:
        """Return the component of a key."""
        name, *places = key.split(".")
        return cls(name, *map(int, places))  # type: ignore[arg-type]  # a key that `key` wrote

    def blame(self, score: float | None = None, threshold: float | None = None) -> Culprit:
        """Return it as what a verdict names."""
        return Culprit(self.name, STAGES[self.name], self.layer, self.head, score, threshold)

    def __str__(self) -> str:
        text = WORDS.get(self.name, str(self.name))
        layer = "" if self.layer is None else f" of layer {self.layer}"
        return f"{text}{layer}" if self.head is None else f"head {self.head}{layer}"


def name_together(components: Iterable[Component]) -> list[str]:
    """Return components in words, those of one kind together, such as `feed-forward of layers 2, 3`."""
    kinds: dict[str, list[Component]] = {}
    for component in components:
        kinds.setdefault(component.name, []).append(component)
    return [str(alike[0]) if len(alike) == 1 else _name_alike(name, alike) for name, alike in kinds.items()]


def _name_alike(name: str, components: list[Component]) -> str:
    layers = sorted({component.layer for component in components if component.layer is not None})
    return f"{WORDS.get(name, name)} of layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))}"
