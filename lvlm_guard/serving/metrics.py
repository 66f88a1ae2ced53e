"""Prometheus metrics of one server."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
ROWS = (1, 2, 4, 8, 16, 32, 64)


class ServingMetrics:
    """Counts requests, tokens and seconds; never anything that a client wrote.

    Args:
        open_requests: Returns how many requests are open.
        waiting: Returns how many of them wait for a batch.
    """

    def __init__(self, open_requests: Callable[[], int], waiting: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "lvlm_guard_requests", "Requests by stack and status.", ["stack", "status"], registry=self.registry
        )
        self.tokens = Counter("lvlm_guard_tokens", "Tokens of answered requests.", ["kind"], registry=self.registry)
        self.disconnected = Counter(
            "lvlm_guard_disconnected_requests", "Requests whose client went away.", registry=self.registry
        )
        self.seconds = self._time("lvlm_guard_request_seconds", "From arrival to the end.")
        self.first = self._time("lvlm_guard_first_piece_seconds", "From arrival to the first text.")
        self.rows = Histogram(
            "lvlm_guard_batch_rows", "Rows of the batch that a request shared.", buckets=ROWS, registry=self.registry
        )
        self._gauge("lvlm_guard_open_requests", "Requests being read, waiting or answered.", open_requests)
        self._gauge("lvlm_guard_waiting_requests", "Requests that wait for a batch.", waiting)

    def _time(self, name: str, meaning: str) -> Histogram:
        return Histogram(name, meaning, ["stack"], buckets=SECONDS, registry=self.registry)

    def _gauge(self, name: str, meaning: str, count: Callable[[], int]) -> None:
        Gauge(name, meaning, registry=self.registry).set_function(count)

    def write(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)
