"""Requests that wait for the worker, batch in turns between clients and in groups that may share a batch."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable

from lvlm_guard.serving.answer_rows import OpenJob


class FairQueue:
    """Requests in the order of their clients' turns.

    Args:
        group: Returns what requests must have in common to share a batch; None for one that runs alone.
        gather: Seconds that a request waits for others to share its batch.
    """

    def __init__(self, group: Callable[[OpenJob], Hashable | None], gather: float) -> None:
        self._group = group
        self._gather = gather
        self._clients: OrderedDict[str, deque[OpenJob]] = OrderedDict()
        self._changed = threading.Condition()
        self._is_closed = False

    def __len__(self) -> int:
        with self._changed:
            return sum(map(len, self._clients.values()))

    def put(self, request: OpenJob) -> bool:
        """Add a request; False where the queue is closed."""
        with self._changed:
            if self._is_closed:
                return False
            self._clients.setdefault(request.job.client, deque()).append(request)
            self._changed.notify()
            return True

    def close(self) -> None:
        """Take no more requests; `take` returns what is left, and then nothing."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def take(self, rows: int) -> list[OpenJob]:
        """Return requests that share a batch of at most so many rows, the next client's oldest among them.

        Waits for a request, and is empty where the queue is closed and nothing is left.
        """
        with self._changed:
            while not self._clients and not self._is_closed:
                self._changed.wait()
            self._wait_for_others(rows)
            return self._take(rows)

    def _wait_for_others(self, rows: int) -> None:
        until = time.monotonic() + self._gather
        while not self._is_closed and self._count_rows() < rows and (left := until - time.monotonic()) > 0:
            self._changed.wait(left)

    def _count_rows(self) -> int:
        return sum(request.job.choices for requests in self._clients.values() for request in requests)

    def _take(self, rows: int) -> list[OpenJob]:
        if not self._clients:
            return []
        client, requests = next(iter(self._clients.items()))
        first = requests.popleft()
        self._end_turn(client)
        batch, key = [first], self._group(first)
        rows -= first.job.choices
        while key is not None and rows > 0 and (request := self._take_alike(key, rows)) is not None:
            batch.append(request)
            rows -= request.job.choices
        return batch

    def _take_alike(self, key: Hashable, rows: int) -> OpenJob | None:
        """Return the first request of the next client that has one of this group and of at most so many rows."""
        for client, requests in self._clients.items():
            for request in requests:
                if request.job.choices <= rows and self._group(request) == key:
                    requests.remove(request)
                    self._end_turn(client)
                    return request
        return None

    def _end_turn(self, client: str) -> None:
        """Let the other clients come first; forget a client that waits for nothing."""
        self._clients.move_to_end(client)
        if not self._clients[client]:
            del self._clients[client]
