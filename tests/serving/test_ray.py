"""Replicas of Ray answer as the server of one process does, and a replica that is killed costs no answer."""

from __future__ import annotations

import base64
import os
import signal
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import httpx
import pytest
from served import ServerProcess, draw_picture

START_SECONDS, LOAD_SECONDS, STOP_SECONDS = 1500, 900, 240
"""Each of the three fails with a message of its own, before the net behind them; a machine with work of its own takes ten times longer."""
pytestmark = [pytest.mark.ray, pytest.mark.timeout(2 * (START_SECONDS + LOAD_SECONDS + STOP_SECONDS))]
ray = pytest.importorskip("ray", reason="Ray is not installed: make test-ray")

REQUESTS, CLIENTS = 60, 4


@pytest.fixture(scope="module")
def replicas():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = "from lvlm_guard.cli import main; main()"
    options = ["--model", "testbed", "--device", "cpu", "--stack", "vcd", "--ray", "local", "--replicas", "2"]
    with pytest.MonkeyPatch.context() as patch:
        for check in ("READY", "HEALTH"):  # a busy machine takes longer to start a proxy than Ray waits
            patch.setenv(f"RAY_SERVE_PROXY_{check}_CHECK_TIMEOUT_S", "120")
        running = ServerProcess([sys.executable, "-c", code, "serve", *options, "--port", str(port)], START_SECONDS)
    yield running
    assert running.stop(STOP_SECONDS) == 0


def ask(url, index, seconds=120):
    content = BytesIO()
    draw_picture(index).save(content, "PNG")
    uri = "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()
    parts = [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": "what is in the picture ?"}]
    body = {"model": "testbed", "messages": [{"role": "user", "content": parts}], "max_tokens": 8, "temperature": 0}
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=seconds)


def ask_until_answered(url, index, failures, until):
    """Ask as clients of OpenAI do: errors of the server and of the connection are tried again."""
    while (left := until - time.monotonic()) > 0:
        try:
            response = ask(url, index, min(left, 120))
        except httpx.TransportError as error:
            failures.append(type(error).__name__)
        else:
            if response.status_code < 500:
                assert response.status_code == 200, response.text
                return response.json()["choices"][0]["message"]["content"]
            failures.append(response.status_code)
        time.sleep(0.1)
    raise AssertionError(f"request {index} was not answered within {LOAD_SECONDS} seconds of load; tries: {failures}")


def find_replicas():
    """Process ids of replicas, which carry their name in their title."""
    titles = {int(path.parent.name): read_title(path) for path in Path("/proc").glob("[0-9]*/cmdline")}
    return sorted(
        process for process, title in titles.items() if title.startswith("ray::ServeReplica") and "lvlm-guard" in title
    )


def read_title(path):
    try:
        return path.read_bytes().decode()
    except OSError:
        return ""


def test_nothing_is_lost_when_a_replica_is_killed_under_load(replicas):
    expected = [ask(replicas.url, index).json()["choices"][0]["message"]["content"] for index in range(6)]
    assert len(set(expected)) > 2
    processes = find_replicas()
    assert len(processes) == 2
    failures, answered, until = [], [], time.monotonic() + LOAD_SECONDS

    def answer(index):
        text = ask_until_answered(replicas.url, index % 6, failures, until)
        answered.append(index)
        return text

    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = [pool.submit(answer, index) for index in range(REQUESTS)]
        killer = threading.Thread(target=kill_when, args=(answered, processes[0], until), daemon=True)
        killer.start()
        texts = [future.result() for future in answers]
        killer.join()
    assert texts == [expected[index % 6] for index in range(REQUESTS)]
    assert sorted(answered) == list(range(REQUESTS))
    assert processes[0] not in find_replicas(), "none was killed"
    print(f"{len(failures)} tries failed: {failures}")


def kill_when(answered, process, until):
    while len(answered) < REQUESTS // 4:
        if time.monotonic() > until:
            return
        time.sleep(0.02)
    os.kill(process, signal.SIGKILL)


def test_routes_and_errors_are_those_of_one_process(replicas):
    assert httpx.get(f"{replicas.url}/health", timeout=60).json() == {"status": "ok"}
    models = httpx.get(f"{replicas.url}/v1/models", timeout=60).json()
    assert models["data"][0]["guard"]["default"] == "vcd"
    response = httpx.post(f"{replicas.url}/v1/chat/completions", json={"model": "testbed"}, timeout=60)
    assert (response.status_code, response.json()["error"]["type"]) == (400, "invalid_request_error")
    with httpx.stream("GET", f"{replicas.url}/", timeout=60) as page:
        assert page.status_code == 200
