"""`lvlm-guard serve` as a process: keys, and an end that answers what is open."""

import threading
import time
from importlib.util import find_spec

import httpx
import pytest
from command_line import run_refused
from served import ask, draw_picture, start_command


@pytest.fixture(scope="module")
def running():
    server = start_command("--stack", "both=vcd+pai", "--api-key", "secret", "--name", "tiny", "--max-batch", "2")
    yield server
    server.stop()


def test_a_key_is_asked_for(running):
    body = {"model": "tiny", "messages": [{"role": "user", "content": "what is red ?"}], "max_tokens": 2}
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        for method, path in (("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("GET", "/metrics")):
            response = httpx.request(method, running.url + path, json=body, headers=headers)
            assert response.status_code == 401
            assert response.json()["error"]["code"] == "invalid_api_key"
    headers = {"Authorization": "Bearer secret"}
    assert httpx.post(f"{running.url}/v1/chat/completions", json=body, headers=headers, timeout=60).status_code == 200
    assert httpx.get(f"{running.url}/health").status_code == httpx.get(f"{running.url}/").status_code == 200
    assert "secret" not in "".join(running.lines)


def test_told_to_stop_it_answers_what_is_open_and_ends(running):
    body = {"model": "tiny", "messages": ask("what is in the picture ?", draw_picture(2)), "max_tokens": 100}
    responses = []
    headers = {"Authorization": "Bearer secret"}

    def send():
        responses.append(httpx.post(f"{running.url}/v1/chat/completions", json=body, headers=headers, timeout=100))

    senders = [threading.Thread(target=send) for _ in range(4)]
    for sender in senders:
        sender.start()
    metrics = f"{running.url}/metrics"
    while "lvlm_guard_open_requests 4.0" not in httpx.get(metrics, headers=headers).text:
        time.sleep(0.02)
    assert running.stop() == 0
    for sender in senders:
        sender.join()
    assert [response.status_code for response in responses] == [200] * 4
    assert any('"stopped"' in line for line in running.lines)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{running.url}/health")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--host", "0.0.0.0"], "--api-key"),
        (["--stack", "vdc"], "vdc"),
        (["--stack", "vcd", "--stack", "vcd"], "NAME="),
        (["--replicas", "2"], "--ray"),
        (
            ["--quantize", "8bit", "--device-map", "auto"],
            "bundled model" if find_spec("bitsandbytes") else "bitsandbytes",
        ),
    ],
)
def test_what_is_refused_before_a_model_is_loaded(monkeypatch, capsys, options, words):
    assert words in run_refused(monkeypatch, capsys, "serve", "--model", "testbed", *options)
