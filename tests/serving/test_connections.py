"""Connections that say nothing, too much, or stop half-way: others are answered meanwhile, and none is kept for ever."""

from __future__ import annotations

import contextlib
import json
import socket
import time

import httpx
import pytest
from served import ask, draw_picture

from lvlm_guard.serving.connections import allow_open_files

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"


def connect(server):
    return socket.create_connection(("127.0.0.1", server.port), timeout=60)


def read_all(connection):
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(4096):
            parts.append(part)
    return b"".join(parts)


@pytest.fixture
def alive(server):
    """Afterwards the server answers as before, and holds no request."""
    yield
    body = {"model": "testbed", "messages": ask("what is in the picture ?", draw_picture(1)), "max_tokens": 2}
    assert httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=120).status_code == 200
    deadline = time.monotonic() + 60
    while "lvlm_guard_open_requests 0.0" not in httpx.get(f"{server.url}/metrics", timeout=60).text:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_thousand_silent_connections_keep_nobody_out_and_are_closed(server, alive):
    silent = [connect(server) for _ in range(1000)]
    assert httpx.get(f"{server.url}/health", timeout=60).status_code == 200
    assert [read_all(connection) for connection in silent] == [b""] * 1000
    for connection in silent:
        connection.close()


@pytest.mark.parametrize("first", [b"", b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"], ids=["first", "second"])
def test_half_a_head_is_not_waited_for_for_ever(server, alive, first):
    """Also on a connection that was answered before, whose limit of idleness the first byte ends."""
    with connect(server) as connection:
        if first:
            connection.sendall(first)
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        connection.sendall(HEAD)
        assert b"HTTP/1.1" not in read_all(connection).partition(b"{")[2]


def test_a_request_that_takes_longer_than_a_head_may_is_answered(server):
    body = json.dumps(
        {"model": "testbed", "guard": {"stack": "slow"}, "messages": ask("what ?", draw_picture(2)), "max_tokens": 100}
    )
    assert (
        httpx.post(
            f"{server.url}/v1/chat/completions", content=body, headers={"content-type": "application/json"}, timeout=120
        ).status_code
        == 200
    )


@pytest.mark.parametrize(
    "sent",
    [
        HEAD + b"X-Long: " + b"a" * 2**20 + b"\r\n\r\n",
        HEAD + b"X-Odd: \xff\x00\r\n\r\n",
        b"POST /\xff\xfe HTTP/1.1\r\nHost: a\r\n\r\n",
        HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\nhello\r\n",
        HEAD + b"Content-Length: -1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
    ids=[
        "a head of 1 MB",
        "bytes in a header",
        "bytes in the path",
        "two lengths",
        "no chunk",
        "a negative length",
        "HTTP/2",
        "TLS",
    ],
)
def test_what_is_no_request_is_refused_and_ended(server, alive, sent):
    with connect(server) as connection, contextlib.suppress(OSError):
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        answer = read_all(connection)
        assert answer == b"" or answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 404", b"HTTP/1.1 431"))


def test_a_chunked_body_is_a_body(server, alive):
    body = json.dumps(
        {"model": "testbed", "messages": ask("what is in the picture ?", draw_picture(3)), "max_tokens": 2}
    ).encode()
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:1], body[1:7], body[7:])) + b"0\r\n\r\n"
    with connect(server) as connection:
        connection.sendall(HEAD + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)
        assert read_all(connection).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("share", [0.5, 1.0], ids=["half a body", "a whole one"])
def test_a_connection_that_is_closed_on_one_side_gives_its_place_back(server, alive, share):
    body = json.dumps(
        {"model": "testbed", "messages": ask("what is in the picture ?", draw_picture(4)), "max_tokens": 300}
    ).encode()
    with connect(server) as connection:
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body[: int(share * len(body))])
        connection.shutdown(socket.SHUT_WR)
        read_all(connection)


def test_an_upgrade_is_not_made(server, alive):
    upgrade = (
        b"Connection: Upgrade, close\r\nUpgrade: websocket\r\nSec-WebSocket-Key: a\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    with connect(server) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n" + upgrade)
        assert not read_all(connection).startswith(b"HTTP/1.1 101")


@pytest.mark.parametrize(
    ("limits", "asked", "granted", "set_to"),
    [
        ((1024, 4096), 2112, 2112, (2368, 4096)),
        ((1024, 2000), 2112, 1744, (2000, 2000)),
        ((1024, -1), 2112, 2112, (2368, -1)),
        ((8192, 8192), 2112, 2112, None),
        ((-1, -1), 2112, 2112, None),
    ],
)
def test_no_more_connections_than_files_may_be_open(monkeypatch, limits, asked, granted, set_to):
    changed = []
    monkeypatch.setattr("resource.getrlimit", lambda _: limits)
    monkeypatch.setattr("resource.setrlimit", lambda _, values: changed.append(values))
    assert allow_open_files(asked) == granted
    assert changed == ([] if set_to is None else [set_to])
