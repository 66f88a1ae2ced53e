"""What is shown in each step: fresh scenes, their pictures' features, questions and captions, and rows without a picture.

At first the image tokens are, for the larger part, the embeddings of the words for what is there: looking up a name among
them is learnt within a few dozen steps, while from the pictures alone it was not learnt in seventy. What is lent is taken back
step by step, until the features are all there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lvlm_guard.testbed.collage.training.projection import word_targets
from lvlm_guard.testbed.collage.training.rows import PackedRows, PackedTurn, Packer
from lvlm_guard.testbed.collage.world.captions import DESCRIBE, write_caption
from lvlm_guard.testbed.collage.world.lessons import draw_questions
from lvlm_guard.testbed.collage.world.pictures import ThingPictures
from lvlm_guard.testbed.collage.world.scenes import CLEAR, EVIDENCE, CollageScene
from lvlm_guard.testbed.collage.world.splits import scene

_UNSEEN = 1_000_003
"""Added to the seed for scenes whose pictures are not shown."""
CAPTION_WEIGHT = 0.4
"""What a token of a caption counts beside one of a short answer."""


@dataclass(frozen=True)
class SeeingLesson:
    """What one step learns from.

    Args:
        rows: Rows with a picture.
        features: Of their pictures, without places, shape (rows, tokens, channels).
        loan: What the image tokens are made of besides the projected features, shape (rows, tokens, hidden).
        share: How much of them is lent, between 0 and 1.
        blind: A row of the same kind without a picture, on which the language model is to stay as it is.
    """

    rows: PackedRows
    features: Tensor
    loan: Tensor
    share: float
    blind: PackedRows


class Course:
    """The scenes of training in the order they are shown, each once.

    Args:
        tower: The vision tower; it is not taught.
        processor: Picture preparation and tokenizer.
        pictures: Of the things, in the rendering of training.
        words: Embeddings of the language model, shape (words, hidden).
        batch: Pictures of a step.
        seed: Of scenes and questions.
        questions: Questions about each picture.
        lending: Steps until nothing is lent any more. In the first half of them everything can be seen well, and questions
            are for things alone.
    """

    def __init__(
        self,
        tower: Any,
        processor: Any,
        pictures: ThingPictures,
        words: Tensor,
        *,
        batch: int,
        seed: int,
        questions: int,
        lending: int,
    ) -> None:
        self._tower, self._processor, self._pictures, self._words = tower, processor, pictures, words
        self._packer = Packer(processor, tower.places.shape[0])
        self.batch, self.seed, self.questions, self.lending = batch, seed, questions, lending

    def lesson(self, step: int) -> SeeingLesson:
        """Return what a step learns from; the same for the same seed, batch and step."""
        rng = np.random.default_rng((self.seed, step, 11))
        early = step < self.lending // 2
        numbers = range(step * self.batch, (step + 1) * self.batch)
        scenes = [scene("train", number, self.seed, CLEAR if early else EVIDENCE) for number in numbers]
        unseen = scene("train", step, self.seed + _UNSEEN)
        return SeeingLesson(
            self._packer.pack([turns(drawn, rng, self.questions, things_alone=early) for drawn in scenes]),
            self.features(scenes),
            torch.stack([self.words(drawn) for drawn in scenes]),
            max(0.0, 1 - step / self.lending) if self.lending else 0.0,
            self._packer.pack([turns(unseen, rng, self.questions)], blind=True),
        )

    def words(self, scene: CollageScene) -> Tensor:
        """Return the embeddings of the words for what each image token shows, shape (tokens, hidden)."""
        side = self._processor.image_processor.size["height"]
        return word_targets(scene, self._processor.tokenizer, self._words, self._tower.places.shape[0], side)

    @torch.no_grad()
    def features(self, scenes: Sequence[CollageScene]) -> Tensor:
        """Return the features of the scenes' pictures, without places, shape (scenes, tokens, channels)."""
        images = [drawn.draw(self._pictures) for drawn in scenes]
        pixels = self._processor.image_processor(images, return_tensors="pt")["pixel_values"]
        features: Tensor = self._tower.features(pixels)
        return features


def turns(scene: CollageScene, rng: np.random.Generator, count: int, *, things_alone: bool = False) -> list[PackedTurn]:
    """Return a caption and questions about a scene, in an order that says nothing; `things_alone` leaves looks and places out."""
    request = DESCRIBE[0] if rng.random() < 0.5 else DESCRIBE[int(rng.integers(len(DESCRIBE)))]
    described = PackedTurn(request, write_caption(scene, rng), CAPTION_WEIGHT)
    questions = draw_questions(scene, rng, count)
    if things_alone:
        questions = [question for question in draw_questions(scene, rng, 4 * count) if question.level == "object"][
            :count
        ]
    return [described, *(PackedTurn(question.text, capitalise(question.answer)) for question in questions)]


def capitalise(answer: str) -> str:
    """Return an answer as a sentence begins."""
    return answer[:1].upper() + answer[1:]
