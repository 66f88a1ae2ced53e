"""What one look keeps: the prefixes of main and of branches, and what is known of them."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lvlm_guard.call.looks.taking_over import AnsweredRow
from lvlm_guard.forward.prefixes import Prefix


@dataclass(frozen=True, eq=False)
class Opening:
    """How every prompt of a look begins.

    Args:
        inputs: Model inputs of one prompt that begins so `[1, length]`, pictures included.
        ids: The beginning, which ends behind the last picture or later.
        pictures: The pictures behind the inputs, if remembered.
    """

    inputs: Mapping[str, Any]
    ids: tuple[int, ...]
    pictures: Any = None


@dataclass(eq=False)
class PrefixMemory:
    """The prefixes of one look; safe to share between threads, which build under its lock and read without.

    Args:
        opening: How its prompts begin.
        answered: The prompt of an answered call that its prefixes are taken from where they can be, if any.
        lock: Held while prefixes are built.
        effects: Edits that changed something while prefixes ran, by strategy and number.
        state: What the model was like when the first prefix was run.
        tried: Kinds of batches that were found exact: with a gap, and without.
    """

    opening: Opening
    answered: AnsweredRow | None = None
    lock: threading.RLock = field(default_factory=threading.RLock)
    effects: set[tuple[str, int]] = field(default_factory=set)
    state: Any = None
    tried: set[bool] = field(default_factory=set)
    _prefixes: dict[Hashable, tuple[Any, Prefix | str]] = field(default_factory=dict)

    @property
    def source(self) -> tuple[Hashable, ...]:
        """What tells prefixes that were run from those that were taken, with padding before them or without; each kind is tried."""
        if self.answered is None:
            return ()
        taken_keys = frozenset(key for key, reason in self.answered.not_taken.items() if not reason)
        return (self.answered.is_padded, taken_keys) if taken_keys else ()

    def find(self, key: Hashable, kind: Any) -> Prefix | str | None:
        """Return the prefix of `"main"` or of a branch, or why it has none; None where none was run for this kind of prompt.

        Args:
            key: Whose.
            kind: What can be compared of its branch and its edits.
        """
        known_kind, prefix = self._prefixes.get(key, (None, None))
        return prefix if known_kind == kind else None

    def keep(self, key: Hashable, kind: Any, prefix: Prefix | str) -> None:
        """Keep a prefix, or why there is none."""
        self._prefixes[key] = (kind, prefix)

    def clear(self) -> None:
        """Let everything go."""
        with self.lock:
            self._prefixes.clear()
