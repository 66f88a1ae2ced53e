"""What is shown in each step: fresh scenes, their pictures' features, questions and captions, and rows without a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lvlm_guard.testbed.collage.training.rows import Packer, Rows, Turn
from lvlm_guard.testbed.collage.world.captions import DESCRIBE, write_caption
from lvlm_guard.testbed.collage.world.lessons import draw_questions
from lvlm_guard.testbed.collage.world.pictures import Pictures
from lvlm_guard.testbed.collage.world.scenes import Scene
from lvlm_guard.testbed.collage.world.splits import scene

QUESTIONS = 12
CAPTION_WEIGHT = 0.4
"""What a token of a caption counts beside one of a short answer."""


@dataclass(frozen=True)
class Lesson:
    """What one step learns from.

    Args:
        rows: Rows with a picture.
        features: Of their pictures, without places, shape (rows, tokens, channels).
        blind: Rows of the same kind without a picture, on which the language model is to stay as it is.
    """

    rows: Rows
    features: Tensor
    blind: Rows


class Course:
    """The scenes of training in the order they are shown, each once.

    Args:
        tower: The vision tower; it is not taught.
        processor: Picture preparation and tokenizer.
        pictures: Of the things, in the rendering of training.
        batch: Pictures of a step.
        seed: Of scenes and questions.
    """

    def __init__(self, tower: Any, processor: Any, pictures: Pictures, batch: int, seed: int) -> None:
        self._tower, self._processor, self._pictures = tower, processor, pictures
        self._packer = Packer(processor, tower.places.shape[0])
        self.batch, self.seed = batch, seed

    def lesson(self, step: int) -> Lesson:
        """Return what a step learns from; the same for the same seed, batch and step."""
        rng = np.random.default_rng((self.seed, step, 11))
        scenes = [scene("train", step * self.batch + at, self.seed) for at in range(self.batch)]
        unseen = scene("train", step, self.seed + 1_000_003)
        return Lesson(
            self._packer.pack([turns(one, rng) for one in scenes]),
            self.features(scenes),
            self._packer.pack([turns(unseen, rng)], blind=True),
        )

    @torch.no_grad()
    def features(self, scenes: Sequence[Scene]) -> Tensor:
        """Return the features of the scenes' pictures, without places, shape (scenes, tokens, channels)."""
        images = [one.draw(self._pictures) for one in scenes]
        pixels = self._processor.image_processor(images, return_tensors="pt")["pixel_values"]
        features: Tensor = self._tower.features(pixels)
        return features


def turns(scene: Scene, rng: np.random.Generator, count: int = QUESTIONS) -> list[Turn]:
    """Return a caption and questions about a scene, in an order that says nothing."""
    asked = DESCRIBE[0] if rng.random() < 0.5 else DESCRIBE[int(rng.integers(len(DESCRIBE)))]
    described = Turn(asked, write_caption(scene, rng), CAPTION_WEIGHT)
    return [described, *(Turn(one.text, spoken(one.answer)) for one in draw_questions(scene, rng, count))]


def spoken(answer: str) -> str:
    """Return an answer as a sentence begins."""
    return answer[:1].upper() + answer[1:]
