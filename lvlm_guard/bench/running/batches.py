"""Which prompts go through the model together: the same for the same items, so that a run can be resumed anywhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from lvlm_guard.bench.items import Item
from lvlm_guard.deprecation import moved_names


@dataclass(frozen=True)
class Batch:
    """Items that are answered by one call, all with or all without a picture, and of one length of answer."""

    number: int
    items: tuple[Item, ...]

    @property
    def max_new_tokens(self) -> int:
        """Length of the answers."""
        return self.items[0].max_new_tokens

    @property
    def is_text_only(self) -> bool:
        """Whether its items have no picture."""
        return all(item.image is None for item in self.items)


def limit_items(items: Sequence[Item], limit: int | None) -> list[Item]:
    """Return at most `limit` items: all items of the first clusters, as many clusters as fit, in order.

    The first cluster is taken even where it has more items than that.
    """
    if limit is None:
        return list(items)
    sizes = Counter(item.cluster for item in items)
    totals = accumulate(sizes.values())
    clusters = {
        cluster for at, (cluster, total) in enumerate(zip(sizes, totals, strict=True)) if total <= limit or at == 0
    }
    return [item for item in items if item.cluster in clusters]


def build_batches(items: Sequence[Item], rows: int) -> list[Batch]:
    """Pack items into batches of at most `rows`; items of a picture stay together unless they are more than that."""
    packed = [group for kind in _group_by_kind(items) for group in _pack(kind, rows)]
    return [Batch(number, tuple(members)) for number, members in enumerate(packed)]


def _group_by_kind(items: Sequence[Item]) -> Iterator[list[list[Item]]]:
    """Group items that may share a batch, a list for each kind."""
    kinds: dict[tuple[int, bool], dict[str, list[Item]]] = {}
    for item in items:
        groups = kinds.setdefault((item.max_new_tokens, item.image is not None), {})
        groups.setdefault(_group(item), []).append(item)
    return (list(groups.values()) for groups in kinds.values())


def _pack(groups: Sequence[Sequence[Item]], rows: int) -> Iterator[list[Item]]:
    batch: list[Item] = []
    for group in groups:
        for start in range(0, len(group), rows):
            piece = group[start : start + rows]
            if len(batch) + len(piece) > rows:
                yield batch
                batch = []
            batch = [*batch, *piece]
    if batch:
        yield batch


def _group(item: Item) -> str:
    return item.id if item.image is None else item.image


__getattr__ = moved_names(
    __name__,
    {
        "batches": "lvlm_guard.bench.running.batches:build_batches",
        "limited": "lvlm_guard.bench.running.batches:limit_items",
    },
)
