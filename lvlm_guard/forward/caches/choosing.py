"""Which kind of joined cache fits the caches of a decode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from transformers.cache_utils import StaticCache

from lvlm_guard.forward.caches.joining import JoinedCache, obstacle
from lvlm_guard.forward.caches.static import StaticJoinedCache, static_obstacle
from lvlm_guard.protocols import Cache

Joined: TypeAlias = JoinedCache | StaticJoinedCache


def is_static(cache: Cache | None) -> bool:
    """Whether a cache is allocated whole, so that its shape never changes."""
    return type(cache) is StaticCache


def find_obstacle(caches: Sequence[Cache | None]) -> str | None:
    """Why these caches, main's first, cannot become one batch, or None when they can."""
    return static_obstacle(caches) if is_static(caches[0]) else obstacle(caches)


def join(main: Cache, branches: Sequence[Cache | None], rows: int) -> Joined:
    """Join caches for which there is no obstacle."""
    return (StaticJoinedCache if is_static(main) else JoinedCache)(main, branches, rows)
