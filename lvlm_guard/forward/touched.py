"""Which edits ever changed anything: noted where they run, looked at where hardly anybody waits for it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class Touched:
    """Notes of one guarded call. A CPU is asked at once; an accelerator at tokens 1, 2, 4, 8 and so on, and at the end.

    An edit that is known to have changed something is compared no more.
    """

    def __init__(self) -> None:
        self._known: set[int] = set()
        self._open: dict[tuple[int, torch.device], Tensor] = {}

    def note(self, edit: Any, before: Tensor, after: Tensor) -> None:
        """Compare what an edit was given with what came of it."""
        if after is before or id(edit) in self._known:
            return
        changed = (after != before).any()
        place = (id(edit), changed.device)
        self._open[place] = self._open[place] | changed if place in self._open else changed
        if changed.device.type == "cpu":
            self._look()

    def look(self, token: int) -> None:
        """Look at the notes, if it is time: before generated token number `token` is run."""
        if token & (token - 1) == 0:
            self._look()

    def any_of(self, edits: Iterable[Any]) -> bool:
        """Whether any of the edits changed anything."""
        self._look()
        return any(id(edit) in self._known for edit in edits)

    def _look(self) -> None:
        self._known |= {edit for (edit, _), changed in self._open.items() if bool(changed)}
        self._open = {place: changed for place, changed in self._open.items() if place[0] not in self._known}
