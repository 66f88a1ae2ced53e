"""Ray gives up waiting for its proxy after a minute; a server waits on, as long as something may still come of it."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from lvlm_guard.serving import ray_serve


class PretendedServe:
    """Says one state after another, and the last one for ever."""

    def __init__(self, *states):
        self.states = list(states)

    def status(self):
        proxies, application = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        applications = (
            {ray_serve.NAME: SimpleNamespace(status=application, message="no such model")} if application else {}
        )
        return SimpleNamespace(proxies=dict(enumerate(proxies)), applications=applications)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(ray_serve, "LOOK_SECONDS", 0.001)


def wait(*states, seconds=60.0, stop=None):
    serve = PretendedServe(*states)
    ray_serve.wait_until_serving(serve, stop or threading.Event(), seconds)
    return serve


def test_it_waits_for_a_proxy_and_for_all_replicas():
    serve = wait(
        ([], None), (["STARTING"], None), (["STARTING"], "DEPLOYING"), (["HEALTHY"], "DEPLOYING"), (["STARTING"], "RUNNING"),
        (["UNHEALTHY", "HEALTHY"], "RUNNING"),
    )  # fmt: skip
    assert len(serve.states) == 1


def test_replicas_that_cannot_start_end_the_wait():
    with pytest.raises(RuntimeError, match="no such model"):
        wait((["HEALTHY"], "DEPLOYING"), (["HEALTHY"], "DEPLOY_FAILED"))


def test_a_wait_without_end_ends_and_says_how_things_stand():
    with pytest.raises(TimeoutError, match=r"after 0.01 seconds its proxies are STARTING"):
        wait((["STARTING"], "RUNNING"), seconds=0.01)
    with pytest.raises(TimeoutError, match="proxies are missing"):
        wait(([], None), seconds=0.01)


def test_whoever_tells_it_to_stop_need_not_wait():
    stop = threading.Event()
    stop.set()
    wait((["STARTING"], "DEPLOYING"), seconds=10_000, stop=stop)
