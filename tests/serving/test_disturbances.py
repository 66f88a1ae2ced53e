"""Clients that go away, stacks that fail, and more requests than the server takes: neighbours notice nothing."""

import contextlib
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
from served import ask, draw_picture

LONG = "what is in the picture ?"
RAISES, REFUSES = "what is in the picture detector ?", "what is in the picture harbour ?"


def text_of(answer):
    return answer.choices[0].message.content


def wait_for(condition, seconds=60):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError("it did not happen")


def wait_for_entry(server, request_id):
    return wait_for(lambda: [entry for entry in server.requests if entry["id"] == request_id])[0]


def count_left(server):
    return sum(entry["status"] == 499 for entry in server.requests)


def test_a_stack_that_refuses_or_raises_fails_its_own_request_alone(complete, server):
    good = [ask(LONG, draw_picture(index)) for index in (1, 2, 4)]
    alone = [text_of(complete(messages, "moody", 16)) for messages in good]
    known = len(server.requests)
    with ThreadPoolExecutor(6) as pool:
        blocker = pool.submit(complete, ask(LONG, draw_picture(9)), "slow", 8)
        bad = [pool.submit(complete, ask(text, draw_picture(1)), "moody", 16) for text in (RAISES, REFUSES)]
        together = list(pool.map(lambda messages: text_of(complete(messages, "moody", 16)), good))
        blocker.result()
    assert together == alone
    with pytest.raises(openai.InternalServerError) as raised:
        bad[0].result()
    assert raised.value.code == "failed"
    assert "secret" not in str(raised.value)
    with pytest.raises(openai.UnprocessableEntityError, match="no harbour") as refused:
        bad[1].result()
    assert refused.value.code == "guard_refused"
    failures = [json.loads(line) for line in server.lines if '"generation_failed"' in line]
    assert max(entry["rows"] for entry in failures) > 1  # they did share a batch
    assert "secret" not in "".join(server.lines)
    assert len(server.requests) > known


def test_a_stream_that_shared_a_failing_batch_goes_on_where_it_was(complete):
    messages = ask(LONG, draw_picture(2))
    whole = text_of(complete(messages, "moody", 16))
    with ThreadPoolExecutor(3) as pool:
        blocker = pool.submit(complete, ask(LONG, draw_picture(9)), "slow", 8)
        bad = pool.submit(lambda: list(complete(ask(RAISES, draw_picture(1)), "moody", 16, stream=True)))
        chunks = list(complete(messages, "moody", 16, stream=True))
        blocker.result()
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole
    with pytest.raises(openai.APIError, match="Generation failed"):
        bad.result()


def test_a_failure_in_the_middle_of_a_stream_is_its_last_event(server):
    body = {"model": "testbed:moody", "messages": ask(RAISES, draw_picture(1)), "max_tokens": 16, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=60) as response:
        assert response.status_code == 200
        events = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert events[-1] == "[DONE]"
    assert json.loads(events[-2])["error"]["code"] == "failed"
    assert json.loads(events[0])["choices"][0]["delta"]["role"] == "assistant"


def test_a_client_that_leaves_ends_the_work_on_its_answer(server, complete):
    body = {"model": "testbed:slow", "messages": ask(LONG, draw_picture(3)), "max_tokens": 400, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=60) as response:
        next(response.iter_lines())
    assert wait_for_entry(server, response.headers["x-request-id"])["status"] == 499
    started = time.monotonic()
    complete(ask(LONG, draw_picture(1)), "plain", 2)
    assert time.monotonic() - started < 18  # 400 tokens of that stack take twenty seconds at least


def test_a_client_that_leaves_before_its_answer_comes(server, complete):
    body = {"model": "testbed:slow", "messages": ask(LONG, draw_picture(3)), "max_tokens": 400}
    left = count_left(server)
    with contextlib.suppress(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=httpx.Timeout(10, read=1))
    wait_for(lambda: count_left(server) == left + 1)
    started = time.monotonic()
    complete(ask(LONG, draw_picture(1)), "plain", 2)
    assert time.monotonic() - started < 10


def test_a_slow_reader_does_not_keep_others_waiting(server, complete):
    body = {"model": "testbed:both", "messages": ask(LONG, draw_picture(2)), "max_tokens": 60, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=60) as response:
        lines = response.iter_lines()
        next(lines)
        assert complete(ask(LONG, draw_picture(1)), "plain", 2).choices
        assert [line for line in lines if line][-1] == "data: [DONE]"


def test_a_full_queue_says_when_to_come_back(server, complete):
    def send():
        body = {"model": "testbed:slow", "messages": ask(LONG, draw_picture(1)), "max_tokens": 10}
        return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=100)

    with ThreadPoolExecutor(14) as pool:
        responses = list(pool.map(lambda _: send(), range(14)))
    full = [response for response in responses if response.status_code == 429]
    assert {response.status_code for response in responses} == {200, 429}
    assert len(responses) - len(full) >= 9  # three quarters of twelve places: all these are one client
    assert all(1 <= int(response.headers["retry-after"]) <= 60 for response in full)
    assert all(response.json()["error"]["type"] == "rate_limit_error" for response in full)
    assert (
        len({response.json()["choices"][0]["message"]["content"] for response in responses if response not in full})
        == 1
    )


def test_metrics_count_what_happened(server, complete):
    def read(name):
        lines = httpx.get(f"{server.url}/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    answered, tokens = read('lvlm_guard_requests_total{stack="plain",status="200"}'), read("lvlm_guard_tokens_total")
    usage = complete(ask(LONG, draw_picture(1)), "plain", 3).usage
    assert wait_for(lambda: read('lvlm_guard_requests_total{stack="plain",status="200"}') == answered + 1)
    assert read("lvlm_guard_tokens_total") == tokens + usage.total_tokens
    assert read("lvlm_guard_open_requests") == 0


def test_health_and_readiness(server):
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}
    assert httpx.get(f"{server.url}/ready").json() == {"status": "ready"}
    assert threading.active_count() < 50
