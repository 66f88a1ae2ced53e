"""A server that ended, or never listens or stops, fails what waits for it at once or in time, and its log is shown."""

from __future__ import annotations

import sys

import pytest
from served import ServerProcess

LISTEN = """print('{"event": "listening", "port": 1}', file=sys.stderr, flush=True)"""


def start(code, seconds):
    return ServerProcess([sys.executable, "-c", f"import signal, sys, time; {code}"], seconds)


def test_one_that_ended_is_not_waited_for():
    with pytest.raises(AssertionError, match=r"(?s)ended before \(3\).*no such model"):
        start("print('no such model', file=sys.stderr); sys.exit(3)", 3600)  # beyond pytest's own limit


def test_one_that_never_listens_is_ended():
    with pytest.raises(AssertionError, match=r"did not listen within 0.5 seconds"):
        start("time.sleep(3600)", 0.5)


def test_one_that_does_not_stop_is_ended():
    server = start(f"signal.signal(signal.SIGTERM, signal.SIG_IGN); {LISTEN}; time.sleep(3600)", 600)
    with pytest.raises(AssertionError, match=r"(?s)did not stop within 0.1 seconds.*listening"):
        server.stop(0.1)
    assert server.process.returncode == -9
