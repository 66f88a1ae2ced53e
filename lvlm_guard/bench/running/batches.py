"""Which prompts go through the model together: the same for the same items, so that a run can be taken up anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lvlm_guard.bench.items import Item
from lvlm_guard.errors import InputError


@dataclass(frozen=True)
class Batch:
    """Items that are answered by one call, all with or all without a picture, and of one length of answer."""

    number: int
    items: tuple[Item, ...]

    @property
    def max_new_tokens(self) -> int:
        """Length of the answers."""
        return self.items[0].max_new_tokens


def limited(items: Sequence[Item], limit: int | None) -> list[Item]:
    """At most `limit` items: all items of the first pictures, as many pictures as fit; the order is kept.

    Raises:
        InputError: Not even the items of the first picture fit.
    """
    if limit is None:
        return list(items)
    sizes: dict[str, int] = {}
    for item in items:
        sizes[_group(item)] = sizes.get(_group(item), 0) + 1
    kept_groups, total = set(), 0
    for group, size in sizes.items():
        if total + size > limit:
            break
        kept_groups.add(group)
        total += size
    if items and not kept_groups:
        first, size = next(iter(sizes.items()))
        raise InputError(f"--limit {limit} is less than the {size} items of the first picture, {first}.")
    return [item for item in items if _group(item) in kept_groups]


def batches(items: Sequence[Item], rows: int) -> list[Batch]:
    """Items in batches of at most `rows`; the items of a picture stay together unless they are more than that."""
    packed = [group for kind in _kinds(items) for group in _packed(kind, rows)]
    return [Batch(number, tuple(members)) for number, members in enumerate(packed)]


def _kinds(items: Sequence[Item]) -> Iterator[list[list[Item]]]:
    """Groups of items that may share a batch, a list for each kind."""
    kinds: dict[tuple[int, bool], dict[str, list[Item]]] = {}
    for item in items:
        groups = kinds.setdefault((item.max_new_tokens, item.image is not None), {})
        groups.setdefault(_group(item), []).append(item)
    return (list(groups.values()) for groups in kinds.values())


def _packed(groups: Sequence[Sequence[Item]], rows: int) -> Iterator[list[Item]]:
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
