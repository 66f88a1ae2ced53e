"""First stage of training: the vision tower learns to see on pictures without habits. It is frozen afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from lvlm_guard.testbed.architectures.architecture import Architecture
from lvlm_guard.testbed.architectures.picture import ACROSS, TOKEN, pixel_batch
from lvlm_guard.testbed.world import drawing
from lvlm_guard.testbed.world.habits import BACKGROUNDS, CATEGORIES, COLOUR_NAMES
from lvlm_guard.testbed.world.scenes import Scene, scenes

PATCHES = ACROSS**2
NO_COLOUR = -100


@dataclass(frozen=True)
class Labels:
    """What is true of every patch and of every picture.

    Shapes: category (batch, patches, categories), colour (batch, patches) with NO_COLOUR where there is no object,
    contents (batch, categories), background (batch,).
    """

    category: Tensor
    colour: Tensor
    contents: Tensor
    background: Tensor

    def to(self, device: torch.device) -> Labels:
        """The same labels on a device."""
        return Labels(*(part.to(device) for part in vars(self).values()))


def labels(batch: Sequence[Scene]) -> Labels:
    """Read the labels off the scenes; an object counts for every patch of its cell."""
    category = torch.zeros(len(batch), ACROSS, ACROSS, len(CATEGORIES))
    colour = torch.full((len(batch), ACROSS, ACROSS), NO_COLOUR)
    step = drawing.CELL // TOKEN
    for row, scene in enumerate(batch):
        for thing in scene.objects:
            down, right = (slice(at * step, (at + 1) * step) for at in thing.cell)
            category[row, down, right, CATEGORIES.index(thing.category)] = 1
            colour[row, down, right] = COLOUR_NAMES.index(thing.colour)
    return Labels(
        category=category.flatten(1, 2),
        colour=colour.flatten(1),
        contents=category.amax((1, 2)),
        background=torch.tensor([BACKGROUNDS.index(scene.background) for scene in batch]),
    )


class CellReadout(nn.Module):
    """Reads category, colour, row and column off patch features, and contents and background off the summary token."""

    def __init__(self, hidden: int, place: float = 0.5) -> None:
        super().__init__()
        self.place_weight = place
        self.norm = nn.LayerNorm(hidden)
        self.category = nn.Linear(hidden, len(CATEGORIES))
        self.colour = nn.Linear(hidden, len(COLOUR_NAMES))
        self.place = nn.Linear(hidden, 2 * ACROSS)
        self.contents = nn.Linear(hidden, len(CATEGORIES))
        self.background = nn.Linear(hidden, len(BACKGROUNDS))

    def forward(self, features: Tensor, truth: Labels) -> Tensor:
        """The training loss of features of shape (batch, 1 + patches, hidden)."""
        features = self.norm(features)
        summary, patches = features[:, 0], features[:, 1:]
        category = binary_cross_entropy_with_logits(self.category(patches), truth.category) * len(CATEGORIES) / 4
        colour = cross_entropy(self.colour(patches).flatten(0, 1), truth.colour.flatten(), ignore_index=NO_COLOUR)
        contents = binary_cross_entropy_with_logits(self.contents(summary), truth.contents) * 4
        background = cross_entropy(self.background(summary), truth.background) * 0.3
        return category + colour + contents + background + self.place_weight * place_loss(self.place(patches))


def place_loss(logits: Tensor) -> Tensor:
    """Return the loss of reading every patch's own row and column, logits of shape (batch, patches, 2 * ACROSS)."""
    grid = torch.arange(PATCHES, device=logits.device)
    row, column = logits.split(ACROSS, dim=-1)
    rows = (grid // ACROSS).expand(logits.shape[0], -1).flatten()
    columns = (grid % ACROSS).expand(logits.shape[0], -1).flatten()
    return cross_entropy(row.flatten(0, 1), rows) + cross_entropy(column.flatten(0, 1), columns)


class VisionStage(nn.Module):
    """Everything the trainer needs to know about the first stage."""

    name = "tower"
    rate = 1e-3
    decay = 0.05

    def __init__(
        self, architecture: Architecture, model: Any, batch: int, seed: int, dtype: torch.dtype = torch.bfloat16
    ) -> None:
        super().__init__()
        self.dtype = dtype
        self.tower = architecture.tower(model)
        self.readout = CellReadout(architecture.width(model.config), architecture.place[0])
        self._encode = architecture.vision_encoder(model)
        self.batch = batch
        self.seed = seed

    def trained(self) -> Iterator[nn.Parameter]:
        """The parameters this stage changes."""
        return self.parameters()

    def loss(self, step: int, rank: int, ranks: int) -> tuple[Tensor, dict[str, float]]:
        """The loss on the scenes that belong to this step and rank."""
        batch = scenes("flat", self.batch, self.seed, (step * ranks + rank) * self.batch)
        device = self.readout.place.weight.device
        truth = labels(batch).to(device)
        with torch.autocast(device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            features = self._encode(pixel_batch(batch).to(device))
        return self.readout(features.float(), truth), {}


def clear_patches(batch: Sequence[Scene]) -> Tensor:
    """Which patches hold a clearly visible object: bool, shape (batch, patches)."""
    clear = torch.zeros(len(batch), ACROSS, ACROSS, dtype=torch.bool)
    step = drawing.CELL // TOKEN
    for row, scene in enumerate(batch):
        for thing in scene.objects:
            if thing.contrast >= 0.7 and scene.noise <= 0.08:
                down, right = (slice(at * step, (at + 1) * step) for at in thing.cell)
                clear[row, down, right] = True
    return clear.flatten(1)
