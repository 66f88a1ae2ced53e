"""What models call their cache: `past_key_values` until transformers 5.23, `cache` since."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CACHE_NAMES = ("cache", "past_key_values")


def name_of_cache(values: Mapping[str, Any]) -> str:
    """Return the name under which arguments or an output hold a cache; the older one where they hold none."""
    return next((name for name in CACHE_NAMES if name in values), CACHE_NAMES[-1])


def find_cache(values: Mapping[str, Any]) -> Any:
    """Return the cache of arguments or of an output, or None."""
    return next((values[name] for name in CACHE_NAMES if name in values), None)
