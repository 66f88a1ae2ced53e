"""`lvlm-guard serve --engine vllm` through OpenAI's own client: every answer is that of `Guard`."""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from io import BytesIO

import pytest

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("default"),
    pytest.mark.timeout(900),
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed here: make test-vllm"),
]
if find_spec("vllm") is not None:
    import httpx
    import openai
    from served import draw_picture, start_command
    from vllm_engine import SETTINGS, load_guard

STACKS = ("vcd", "vdd", "plain")
OPTIONS = (
    '{"dtype": "float32", "enforce_eager": true, "max_model_len": 200, "block_size": 32, "max_num_batched_tokens": 128}'
)


@pytest.fixture(scope="module")
def server():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SETTINGS.items():
            patch.setenv(name, value)
        options = ("--engine", "vllm", "--engine-options", OPTIONS, "--stack", "vcd", "--stack", "vdd")
        running = start_command(*options, seconds=600)
    yield running
    assert running.stop() == 0


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=300) as client:
        yield client


def write_message(index):
    data = BytesIO()
    draw_picture(index).save(data, "PNG")
    url = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
    question = {"type": "text", "text": "Is there a dog in the picture?" if index % 2 else "What is in the picture?"}
    return {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}, question]}


def expect(index, stack, tokens=16):
    message = write_message(index)
    picture = {"type": "image", "image": draw_picture(index)}
    ours = {"role": "user", "content": [picture, message["content"][1]]}
    return load_guard().chat([ours], stack=stack, max_new_tokens=tokens, do_sample=False)


def ask(client, index, stack, **settings):
    return client.chat.completions.create(
        model="testbed",
        messages=[write_message(index)],
        max_tokens=16,
        extra_body={"guard": {"stack": stack}},
        **settings,
    )


def test_answers_of_many_at_once_are_the_guards(client):
    cases = [(index, STACKS[index % 3]) for index in range(12)]
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda case: ask(client, *case), cases))
    assert [answer.choices[0].message.content for answer in answers] == [expect(*case) for case in cases]
    assert all(answer.usage.prompt_tokens > 64 for answer in answers)
    assert {answer.choices[0].finish_reason for answer in answers} <= {"stop", "length"}


@pytest.mark.parametrize("stack", STACKS)
def test_pieces_of_a_stream_are_the_answer(client, stack):
    pieces = [chunk.choices[0].delta.content or "" for chunk in ask(client, 2, stack, stream=True) if chunk.choices]
    assert "".join(pieces) == expect(2, stack)
    assert len([piece for piece in pieces if piece]) > 1


def test_a_stream_that_is_dropped_leaves_nothing_running(client):
    stream = ask(client, 1, "vcd", stream=True)
    next(iter(stream))
    stream.close()
    assert ask(client, 2, "vdd").choices[0].message.content == expect(2, "vdd")


def test_stops_and_several_choices(client):
    whole = expect(0, "vdd")
    stop = whole.split()[2]
    answer = ask(client, 0, "vdd", stop=[stop])
    assert answer.choices[0].message.content == whole[: whole.index(stop)].strip()
    several = ask(client, 0, "vdd", n=2)
    assert [choice.message.content for choice in several.choices] == [whole, whole]


def test_what_the_engine_cannot_do_is_refused_and_it_goes_on(client):
    with pytest.raises(openai.UnprocessableEntityError, match="seed"):
        ask(client, 0, "vdd", temperature=0.7, seed=1)
    with pytest.raises(openai.UnprocessableEntityError, match="report"):
        client.chat.completions.create(
            model="testbed",
            messages=[write_message(0)],
            max_tokens=4,
            extra_body={"guard": {"stack": "vdd", "report": True}},
        )
    with pytest.raises(openai.BadRequestError, match="context length"):
        client.chat.completions.create(model="testbed", messages=[write_message(0)], max_tokens=190)
    assert ask(client, 0, "vdd").choices[0].message.content == expect(0, "vdd")


def test_a_text_without_a_picture_is_answered_plainly(client):
    answer = client.chat.completions.create(
        model="testbed", messages=[{"role": "user", "content": "is there a dog ?"}], max_tokens=8
    )
    message = {"role": "user", "content": "is there a dog ?"}
    assert answer.choices[0].message.content == load_guard().chat(
        [message], stack=None, max_new_tokens=8, do_sample=False
    )


def test_the_engine_is_ready(server):
    assert httpx.get(f"{server.url}/ready", timeout=60).status_code == 200
