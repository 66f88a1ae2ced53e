"""The values that suites, runner and reports share: items, and answers to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from lvlm_guard.deprecation import moved_names

Level = Literal["object", "attribute", "relation"]
LEVELS: tuple[Level, ...] = ("object", "attribute", "relation")


@dataclass(frozen=True)
class Item:
    """A prompt and its truth.

    Args:
        id: Unique within its suite.
        image: Names the picture to `Suite.picture`; None for a prompt without one.
        prompt: The text of the user, without template or image token.
        truth: A JSON value whose meaning is the suite's: "yes", a list of objects.
        level: The level of misalignment that it tests.
        kind: The suite's own category, such as "adversarial" or "caption".
        max_new_tokens: Length of the answer.
        cluster: What is resampled as a whole: items about one picture go together. By default the image.
        extra: Further JSON values that the suite's measures need.
    """

    id: str
    image: str | None
    prompt: str
    truth: Any
    level: Level
    kind: str
    max_new_tokens: int = 16
    cluster: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Group an item with the others of its picture, or alone."""
        if not self.cluster:
            object.__setattr__(self, "cluster", self.image or self.id)


@dataclass(frozen=True)
class AnsweredItem:
    """An item and the raw answer.

    Args:
        item: The prompt and its truth.
        text: The answer as decoded, special tokens removed, not stripped.
        tokens: Generated tokens, the end token included.
        margin: Logit of "yes" minus logit of "no" at the first token, where the run recorded it.
    """

    item: Item
    text: str
    tokens: int = 0
    margin: float | None = None


if TYPE_CHECKING:
    Said = AnsweredItem

__getattr__ = moved_names(__name__, {"Said": "lvlm_guard.bench.items:AnsweredItem"})
