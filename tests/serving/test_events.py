"""How a request is followed: what a worker's thread emits, errors, deadlines, and clients who leave."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from lvlm_guard.serving.api_errors import ApiError, describe_stopping
from lvlm_guard.serving.engine import ChatJob, ChoiceEnd, JobEnd, TextPiece, follow_events


class Worker:
    """Takes one request, and emits what it is told from a thread of its own."""

    def __init__(self, *events) -> None:
        self.events = events
        self.is_given_up = False

    def hand_over(self, emit):
        threading.Thread(target=lambda: [emit(event) for event in self.events]).start()
        return self

    def give_up(self) -> None:
        self.is_given_up = True


def make_job(seconds: float = 60.0) -> ChatJob:
    return ChatJob("1", "me", [], False, "plain", None, 4, (), 1, False, time.monotonic() + seconds)


def follow(worker: Worker, seconds: float = 60.0, most: int = 99) -> list:
    async def collect() -> list:
        followed, generator = [], follow_events(make_job(seconds), worker.hand_over)
        async for event in generator:
            followed.append(event)
            if len(followed) == most:
                break
        await generator.aclose()
        return followed

    return asyncio.run(collect())


EVENTS = (TextPiece(0, "a"), TextPiece(0, "b"), ChoiceEnd(0, "stop"), JobEnd(3, 2, 1))


def test_events_come_in_their_order_and_nothing_comes_behind_the_end():
    worker = Worker(*EVENTS, TextPiece(0, "late"))
    assert follow(worker) == list(EVENTS)
    assert worker.is_given_up


def test_who_leaves_gives_the_request_up():
    worker = Worker(EVENTS[0])
    assert follow(worker, most=1) == [EVENTS[0]]
    assert worker.is_given_up


def test_an_error_of_the_worker_ends_the_request():
    worker = Worker(EVENTS[0], ApiError(500, "no", "failed"), EVENTS[-1])
    with pytest.raises(ApiError, match="no"):
        follow(worker)
    assert worker.is_given_up


def test_a_worker_that_is_silent_beyond_the_deadline_is_given_up():
    worker = Worker()
    with pytest.raises(ApiError) as caught:
        follow(worker, seconds=-1.0)
    assert (caught.value.status, caught.value.code, worker.is_given_up) == (504, "deadline_exceeded", True)


def test_a_request_that_is_not_taken_is_refused_with_when_to_come_back():
    def refuse(emit):
        raise describe_stopping()

    worker = Worker()
    worker.hand_over = refuse
    with pytest.raises(ApiError) as caught:
        follow(worker)
    assert (caught.value.status, caught.value.headers["Retry-After"], worker.is_given_up) == (503, "5", False)
