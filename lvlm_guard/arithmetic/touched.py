"""Which edits and terms ever changed anything: noted where they run, looked at where hardly anybody waits for it."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

import torch
from torch import Tensor


class Touched:
    """Notes of one guarded call. A CPU is asked at once; an accelerator at tokens 1, 2, 4, 8 and so on, and at the end.

    What is known to have changed something is compared no more.
    """

    def __init__(self) -> None:
        self._known: set[Hashable] = set()
        self._open: dict[tuple[Hashable, torch.device], Tensor] = {}

    def note(self, key: Hashable, before: Tensor, after: Tensor) -> None:
        """Compare what an edit or a strategy's terms were given with what came of it."""
        if after is before or key in self._known:
            return
        changed = (after != before).any()
        place = (key, changed.device)
        self._open[place] = self._open[place] | changed if place in self._open else changed
        if changed.device.type == "cpu":
            self._look()

    def look(self, token: int) -> None:
        """Look at the notes, if it is time: before generated token number `token` is run."""
        if token & (token - 1) == 0:
            self._look()

    def any_of(self, keys: Iterable[Hashable]) -> bool:
        """Whether any of them changed anything."""
        self._look()
        return not self._known.isdisjoint(keys)

    def _look(self) -> None:
        self._known |= {key for (key, _), changed in self._open.items() if bool(changed)}
        self._open = {place: changed for place, changed in self._open.items() if place[0] not in self._known}
