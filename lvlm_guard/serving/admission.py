"""Who may come in: API keys, and a bounded number of open requests, of which no client takes all."""

from __future__ import annotations

import hashlib
import hmac
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from lvlm_guard.serving.api_errors import ApiError

LARGEST_SHARE = 0.75
"""Of all places that one client may take."""
LONGEST_WAIT = 60


class KeyRing:
    """The keys that clients may show; without keys, everybody may come in.

    Args:
        keys: Secret texts.
    """

    def __init__(self, keys: Sequence[str] = ()) -> None:
        self._keys = [key.encode() for key in keys]

    def identify(self, authorization: str | None, address: str) -> str:
        """Return who a client is: its key, as a digest, or its address where there are no keys.

        Raises:
            ApiError: No key, or another one.
        """
        if not self._keys:
            return address
        scheme, _, token = (authorization or "").partition(" ")
        key = token.strip().encode("utf-8", "surrogateescape")
        matches = [hmac.compare_digest(key, secret) for secret in self._keys]  # all of them: time tells nothing
        if scheme.lower() != "bearer" or not any(matches):
            raise ApiError(
                401,
                "Incorrect API key provided. Send it as the header Authorization: Bearer KEY.",
                "invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return "key-" + hashlib.sha256(key).hexdigest()[:8]


class Admission:
    """Counts open requests; used by one event loop.

    Args:
        places: How many requests may be open at once.
        seconds_to_wait: Returns when another one would be begun.
    """

    def __init__(self, places: int, seconds_to_wait: Callable[[], float]) -> None:
        self._places = places
        self._share = max(1, math.floor(places * LARGEST_SHARE))
        self._seconds_to_wait = seconds_to_wait
        self._open: Counter[str] = Counter()

    def __len__(self) -> int:
        return self._open.total()

    @contextmanager
    def enter(self, client: str) -> Iterator[None]:
        """Hold a place while a request is read and answered.

        Raises:
            ApiError: All places are taken, or all that one client may take.
        """
        if len(self) >= self._places or self._open[client] >= self._share:
            wait = min(max(math.ceil(self._seconds_to_wait()), 1), LONGEST_WAIT)
            raise ApiError(
                429,
                f"Too many requests are waiting. Ask again in {wait} seconds.",
                "queue_full",
                kind="rate_limit_error",
                headers={"Retry-After": str(wait)},
            )
        self._open[client] += 1
        try:
            yield
        finally:
            self._open[client] -= 1
            if not self._open[client]:
                del self._open[client]
