"""The conversations of a batch: with each item's own picture, with that of another scene, or with a row for company."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from lvlm_guard.bench.items import Item
from lvlm_guard.bench.running.batches import Batch
from lvlm_guard.bench.suite import Suite
from lvlm_guard.errors import InputError

Conversation = list[dict[str, Any]]


@dataclass(frozen=True)
class PromptBuilder:
    """Builds the conversations of one suite.

    Args:
        name: The suite's name in the run.
        suite: The suite.
        data: Folder of its files.
        swaps: The picture of another scene for every picture; empty where there is none.
    """

    name: str
    suite: Suite
    data: Path | None
    swaps: Mapping[str, str]

    def build(self, batch: Batch) -> list[Conversation]:
        """Return a conversation for every item; a picture is read once."""
        return self._build(batch, {name: name for name in _pictures(batch.items)})

    def build_swapped(self, batch: Batch) -> list[Conversation]:
        """Return the same questions, each about the picture of another scene.

        Raises:
            InputError: The suite has no picture of another scene.
        """
        return self._build(batch, {name: self._swap(name) for name in _pictures(batch.items)})

    def company(self, batch: Batch) -> Conversation | None:
        """Return a further conversation for a batch about one picture, the first question about another scene's picture.

        None where the batch is about several pictures already, or about none.

        Raises:
            InputError: As for `build_swapped`.
        """
        names = _pictures(batch.items)
        if len(names) != 1:
            return None
        item = next(item for item in batch.items if item.image is not None)
        return _conversation(item.prompt, self.suite.picture(self.data, self._swap(names[0])))

    def _build(self, batch: Batch, names: Mapping[str, str]) -> list[Conversation]:
        pictures = {name: self.suite.picture(self.data, name) for name in dict.fromkeys(names.values())}
        return [
            _conversation(item.prompt, None if item.image is None else pictures[names[item.image]])
            for item in batch.items
        ]

    def _swap(self, name: str) -> str:
        if name not in self.swaps:
            raise InputError(
                f"{self.name} has no picture of another scene, so there is none to swap {name!r} for. Take more of its pictures."
            )
        return self.swaps[name]


def find_swaps(items: Sequence[Item]) -> dict[str, str]:
    """Return a picture of another scene for every picture: one of the next cluster, the first after the last.

    Two names of one picture are two pictures. Empty where all pictures belong to one cluster.
    """
    clusters: dict[str, list[str]] = {}
    for item in items:
        if item.image is not None and item.image not in clusters.setdefault(item.cluster, []):
            clusters[item.cluster].append(item.image)
    groups = list(clusters.values())
    swaps: dict[str, str] = {}
    for at, group in enumerate(groups):
        following = [name for later in (*groups[at + 1 :], *groups[:at]) for name in later if name not in group]
        swaps |= {name: following[0] for name in group if name not in swaps and following}
    return swaps


def _pictures(items: Sequence[Item]) -> list[str]:
    return list(dict.fromkeys(item.image for item in items if item.image is not None))


def _conversation(prompt: str, picture: Image.Image | None) -> Conversation:
    image = [] if picture is None else [{"type": "image", "image": picture}]
    return [{"role": "user", "content": [*image, {"type": "text", "text": prompt}]}]
