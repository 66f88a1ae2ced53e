"""The settings of a training."""

from __future__ import annotations

from dataclasses import dataclass

from lvlm_guard.errors import InputError
from lvlm_guard.testbed.collage.training.student import RANK
from lvlm_guard.testbed.training.precision import check_dtype


@dataclass(frozen=True)
class SeeingPlan:
    """A whole training. A checkpoint is resumed with the plan it was begun with, or not at all.

    Args:
        steps: Steps in all.
        batch: Pictures of a step.
        questions: Questions about each, besides a caption.
        rank: Rank of the low-rank changes.
        rate: Learning rate of the low-rank changes.
        seed: Of scenes, questions and first factors.
        fitted: Scenes that the projector is fitted on.
        lending: Steps until the image tokens are no longer partly lent; see `Course`.
        blind_every: Every how many steps the language model is held to what it says without a picture.
        blind: What the distance from that counts.
        exam_every: Every how many steps it is measured on scenes that are not shown; 0 never.
        exam: Twins that it is measured on.
        save_every: Every how many steps a checkpoint is written.
        averaged: The mean of the weights of so many checkpoints, the last ones, is what was learnt.
        dtype: "bfloat16" or "float32", what forward and backward compute in; None for the faster one, or that of the
            checkpoint that is resumed.
    """

    steps: int = 400
    batch: int = 4
    questions: int = 12
    rank: int = RANK
    rate: float = 1e-3
    seed: int = 0
    fitted: int = 600
    lending: int = 80
    blind_every: int = 8
    blind: float = 1.0
    exam_every: int = 40
    exam: int = 8
    save_every: int = 20
    averaged: int = 4
    dtype: str | None = None

    def saves(self, step: int) -> bool:
        """Return whether a checkpoint is written after this many steps."""
        return step % self.save_every == 0 or step == self.steps

    def __post_init__(self) -> None:
        """Refuse what cannot be trained with.

        Raises:
            InputError: A number is too small, or the dtype is another.
        """
        for name in ("steps", "batch", "questions", "rank", "fitted", "blind_every", "save_every", "averaged"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}.")
        check_dtype(self.dtype)
