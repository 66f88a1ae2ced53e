"""Which edits and terms ever changed anything: compared where they run, and read where hardly anybody waits for it."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

import torch
from torch import Tensor


class EffectTracker:
    """Comparisons of one guarded call, read at once on a CPU; on an accelerator at tokens 1, 2, 4, 8 and so on, and at the end.

    Whatever has had an effect is not compared again.
    """

    def __init__(self) -> None:
        self._effective: set[Hashable] = set()
        self._unread: dict[tuple[Hashable, torch.device], Tensor] = {}

    def record(self, key: Hashable, before: Tensor, after: Tensor) -> None:
        """Compare the input of an edit, or main's logits, with what came of it."""
        if after is before or key in self._effective:
            return
        changed = (after != before).any()
        place = (key, changed.device)
        self._unread[place] = self._unread[place] | changed if place in self._unread else changed
        if changed.device.type == "cpu":
            self._read()

    def read_when_due(self, token: int) -> None:
        """Read the comparisons if `token`, the number of a generated token, is 0 or a power of two."""
        if token & (token - 1) == 0:
            self._read()

    def had_effect(self, keys: Iterable[Hashable]) -> bool:
        """Return whether any of the keys changed anything."""
        self._read()
        return not self._effective.isdisjoint(keys)

    def _read(self) -> None:
        self._effective |= {key for (key, _), changed in self._unread.items() if bool(changed)}
        self._unread = {place: changed for place, changed in self._unread.items() if place[0] not in self._effective}
