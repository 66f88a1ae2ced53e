"""What clients may send wrongly or in bad faith: a clear answer in OpenAI's form, and the server goes on."""

import base64
import json
import socket
import struct
import time
import zlib
from io import BytesIO

import httpx
import pytest
from PIL import Image
from served import draw_picture, write_uri

GOOD = {"model": "testbed", "messages": [{"role": "user", "content": "what is red ?"}], "max_tokens": 2}


@pytest.fixture
def post(server):
    def post(body, **settings):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"content-type": "application/json", **settings.pop("headers", {})}
        return httpx.post(f"{server.url}/v1/chat/completions", content=content, headers=headers, timeout=60, **settings)

    return post


@pytest.fixture(autouse=True)
def goes_on(post):
    yield
    assert post(GOOD).status_code == 200


def refused(response, status, code):
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code), response.text
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert 0 < len(error["message"]) <= 800
    assert response.headers["x-request-id"].startswith("chatcmpl-")
    return error


def picture(url):
    return {"type": "image_url", "image_url": {"url": url}}


def with_parts(*parts, **fields):
    return {**GOOD, "messages": [{"role": "user", "content": list(parts)}], **fields}


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b"", "invalid_json", None),
        (b"{", "invalid_json", None),
        (b"\xff\xfe", "invalid_json", None),
        (b"[" * 100_000, "invalid_json", None),
        (b"[]", "invalid_value", None),
        (b'{"model": "testbed", "messages": [{"role": "user", "content": "\\ud800"}]}', "invalid_json", None),
        ({}, "missing_required_parameter", "model"),
        ({**GOOD, "messages": []}, "invalid_value", "messages"),
        ({**GOOD, "messages": [{"role": "tool", "content": "a"}]}, "invalid_value", "messages[0].role"),
        ({**GOOD, "messages": [{"role": "user"}]}, "missing_required_parameter", "messages[0].content"),
        ({**GOOD, "messages": [{"role": "user", "content": [{"type": "video"}]}]}, "invalid_value", None),
        (with_parts({"type": "text", "text": 3}), "invalid_value", "messages[0].content[0].text"),
        ({**GOOD, "foo": 1}, "unknown_parameter", "foo"),
        ({**GOOD, "guard": {"stack": "vcd", "alpha": 9}}, "unknown_parameter", "guard.alpha"),
        ({**GOOD, "guard": {"stack": "vdc"}}, "unknown_stack", "guard.stack"),
        ({**GOOD, "model": "testbed:vdc"}, "unknown_stack", "model"),
        ({**GOOD, "max_tokens": 0}, "invalid_value", "max_tokens"),
        ({**GOOD, "max_tokens": "2"}, "invalid_value", "max_tokens"),
        ({**GOOD, "max_tokens": 10**30}, "invalid_value", "max_tokens"),
        ({**GOOD, "max_tokens": 401}, "invalid_value", "max_tokens"),
        ({**GOOD, "temperature": 2.1}, "invalid_value", "temperature"),
        ({**GOOD, "top_p": -0.1}, "invalid_value", "top_p"),
        ({**GOOD, "n": 7}, "invalid_value", "n"),
        ({**GOOD, "stop": ["a"] * 5}, "invalid_value", "stop"),
        ({**GOOD, "stop": ""}, "invalid_value", "stop"),
        ({**GOOD, "seed": 2**70}, "invalid_value", "seed"),
        ({**GOOD, "logprobs": True}, "unsupported_parameter", "logprobs"),
        ({**GOOD, "tools": [{"type": "function"}]}, "unsupported_parameter", "tools"),
        ({**GOOD, "response_format": {"type": "json_object"}}, "unsupported_parameter", "response_format"),
        ({**GOOD, "stream_options": {"include_usage": True}}, "invalid_value", "stream_options"),
        (
            {**GOOD, "messages": [{"role": "system", "content": [picture("data:image/png;base64,AAAA")]}]},
            "invalid_value", "messages[0]",
        ),
    ],
)  # fmt: skip
def test_a_malformed_body(post, body, code, param):
    error = refused(post(body), 400, code)
    assert param is None or error["param"] == param


def test_unknown_stacks_and_models_name_those_that_exist(post):
    message = refused(post({**GOOD, "guard": {"stack": "vdc"}}), 400, "unknown_stack")["message"]
    assert "'vcd'?" in message
    assert "both" in message
    assert "'testbed'" in refused(post({**GOOD, "model": "gpt-5"}), 404, "model_not_found")["message"]


def test_neutral_values_of_what_is_not_offered_are_taken(post):
    neutral = {
        "logprobs": False, "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "tools": None,
        "response_format": {"type": "text"}, "tool_choice": "none", "user": "me", "metadata": {"a": "b"},
    }  # fmt: skip
    assert post({**GOOD, **neutral}).status_code == 200


@pytest.mark.parametrize("token", ["<image>", "<eos>", "<pad>", "<bos>"])
def test_special_tokens_in_texts(post, token):
    error = refused(
        post(with_parts(picture(write_uri(draw_picture(1))), {"type": "text", "text": f"a {token} b"})),
        400,
        "special_token",
    )
    assert token in error["message"]


def test_a_special_token_in_two_halves(post):
    parts = [{"type": "text", "text": "what is <im"}, {"type": "text", "text": "age> this"}]
    refused(post(with_parts(*parts)), 400, "special_token")


def test_ten_thousand_parts(post):
    refused(post(with_parts(*[{"type": "text", "text": "a"}] * 10_000)), 400, "too_many_parts")
    uri = write_uri(Image.new("RGB", (1, 1)))
    refused(post(with_parts(*[picture(uri)] * 1_999)), 400, "too_many_pictures")


def test_more_words_than_the_model_takes(post):
    error = refused(post(with_parts({"type": "text", "text": "red " * 600})), 400, "context_length_exceeded")
    assert "512" in error["message"]
    refused(post(with_parts({"type": "text", "text": "red " * 60_000})), 400, "context_length_exceeded")


def huge_png(width, height):
    """A PNG of a few bytes whose header promises many pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def as_uri(content, kind="png"):
    return f"data:image/{kind};base64," + base64.b64encode(content).decode()


def test_a_decompression_bomb_is_known_by_its_header(post):
    started = time.monotonic()
    for side in (60_000, 9_000):
        error = refused(post(with_parts(picture(as_uri(huge_png(side, side))))), 400, "image_too_large")
        assert error["param"] == "messages[0].content[0]"
    assert "9000 x 9000" in error["message"]
    assert time.monotonic() - started < 10


def test_pixels_are_counted_over_all_pictures(post):
    uri = as_uri(huge_png(800, 800))
    refused(post(with_parts(picture(uri), picture(uri))), 400, "invalid_image")  # each alone would do, but is broken
    content = BytesIO()
    Image.new("RGB", (800, 800)).save(content, "PNG")
    uri = as_uri(content.getvalue())
    refused(post(with_parts(picture(uri), picture(uri))), 400, "image_too_large")


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("data:image/png;base64,AAAA", "invalid_image"),
        ("data:image/png;base64,", "invalid_image"),
        ("data:image/png;base64,!!!!", "invalid_image_url"),
        ("data:text/html,hello", "invalid_image_url"),
        ("/etc/passwd", "invalid_image_url"),
        ("file:///etc/passwd", "invalid_image_url"),
        ("AAAA", "invalid_image_url"),
        ("", "invalid_image_url"),
        ("http://169.254.169.254/latest", "remote_pictures_off"),
        (as_uri(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "eps"), "invalid_image"),
    ],
)
def test_what_is_no_picture(post, url, code):
    refused(post(with_parts(picture(url))), 400, code)


def test_a_picture_that_the_model_cannot_take(post):
    """The server's model takes pictures of one size, and its processor leaves them as they are; any model may raise at a picture that its processor lets pass."""
    body = with_parts(picture(write_uri(Image.new("RGB", (48, 48)))), {"type": "text", "text": "what is red ?"})
    assert "48*48" in refused(post(body), 422, "model_cannot_answer")["message"]


def test_large_and_mistyped_bodies(post):
    refused(post(b" " * (2 * 2**20 + 1)), 413, "request_too_large")
    refused(post(GOOD, headers={"content-type": "text/plain"}), 415, "unsupported_media_type")


def test_a_large_body_without_its_length(server):
    def parts():
        for _ in range(64):
            yield b" " * 2**16

    with httpx.Client(base_url=server.url, timeout=60) as client:
        try:
            response = client.post(
                "/v1/chat/completions", content=parts(), headers={"content-type": "application/json"}
            )
        except httpx.WriteError:
            return  # the server closed the connection before all of it was sent
        refused(response, 413, "request_too_large")


def test_a_slow_sender_is_told_so(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
        connection.sendall(head.encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 408")


def test_other_addresses_and_methods(server):
    for method, path, status in (("GET", "/v1/nothing", 404), ("GET", "/v1/chat/completions", 405), ("POST", "/", 405)):
        response = httpx.request(method, server.url + path)
        assert response.status_code == status
        assert response.json()["error"]["code"] == "unknown_url"


def test_nothing_that_a_client_wrote_is_logged(server, post):
    secret = "kitchen mushroom ladder"
    post(with_parts({"type": "text", "text": secret}))
    post(with_parts({"type": "text", "text": f"<image> {secret}"}))
    post(with_parts(picture(write_uri(Image.new("RGB", (48, 48)))), {"type": "text", "text": secret}))
    post({**GOOD, secret: 1})
    assert len(server.requests) > 3
    assert not any("mushroom" in line for line in server.lines)
    json_lines = [line for line in server.lines if line.startswith("{")]
    assert all(json.loads(line)["event"] for line in json_lines)
