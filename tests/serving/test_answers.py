"""Answers of the server are those of the guard, streamed or whole, alone or beside others."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from served import ask, draw_picture

STACKS = {"vcd": "vcd", "both": "vcd+pai", "plain": None, "searching": "opera"}
LONG = "what is in the picture ?"
QUESTIONS = [LONG, LONG, LONG, "where is the kite and what colour is it ?", LONG, "what is left of the tree ?"]


def local_messages(text, *pictures):
    images = [{"type": "image", "image": picture} for picture in pictures]
    return [{"role": "user", "content": [*images, {"type": "text", "text": text}]}]


def text_of(answer):
    return answer.choices[0].message.content


def join(chunks):
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


@pytest.mark.parametrize("stack", STACKS)
def test_an_answer_is_the_guards(complete, guard, stack):
    expected = guard.chat(local_messages(LONG, draw_picture(1)), stack=STACKS[stack], max_new_tokens=12)
    answer = complete(ask(LONG, draw_picture(1)), stack)
    assert text_of(answer) == expected
    assert answer.guard == {"stack": stack}
    assert answer.usage.completion_tokens <= 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_stacks_give_different_answers(complete):
    answers = {text_of(complete(ask(LONG, draw_picture(1)), stack, 24)) for stack in ("vcd", "both", "plain")}
    assert len(answers) > 1


@pytest.mark.parametrize("stack", ["both", "plain", "searching"])
def test_a_stream_is_the_whole_answer(complete, stack):
    messages = ask(LONG, draw_picture(2))
    whole = complete(messages, stack)
    chunks = list(complete(messages, stack, stream=True, stream_options={"include_usage": True}))
    assert join(chunks) == text_of(whole)
    assert chunks[-1].usage == whole.usage
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    reasons = [chunk.choices[0].finish_reason for chunk in chunks[:-1]]
    assert reasons[-1] == whole.choices[0].finish_reason
    assert set(reasons[:-1]) == {None}
    if stack != "searching":
        assert len(chunks) > 8  # it came in pieces


def test_a_stream_without_stream_options_has_no_usage(client):
    chunks = list(
        client.chat.completions.create(
            model="testbed:plain", messages=ask(LONG, draw_picture(1)), max_tokens=3, stream=True
        )
    )
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)
    assert all("guard" not in chunk.model_extra for chunk in chunks)


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.3, "top_p": 0.95, "seed": 11}], ids=["greedy", "sampled"])
def test_an_answer_alone_is_that_in_a_batch(complete, server, sampling):
    requests = [ask(question, draw_picture(index)) for index, question in enumerate(QUESTIONS)]

    def answer(messages):
        return text_of(complete(messages, "both", 16, **sampling))

    alone = [answer(messages) for messages in requests]
    known = len(server.requests)
    with ThreadPoolExecutor(len(requests)) as pool:
        blocker = pool.submit(complete, ask(LONG, draw_picture(9)), "slow", 8)
        together = list(pool.map(answer, requests))
        blocker.result()
    assert together == alone
    assert len(set(alone)) > 2
    shared = [entry["rows"] for entry in server.requests[known:] if entry["stack"] == "both"]
    assert max(shared) >= 3  # they did share a batch


def test_neighbours_do_not_change_what_is_sampled(complete):
    def sample(seed):
        return text_of(complete(ask(LONG, draw_picture(2)), "vcd", 16, temperature=1.5, seed=seed))

    assert sample(1) == sample(1)
    assert len({sample(seed) for seed in range(4)}) > 1


def test_choices_are_sampled_apart(complete):
    messages = ask(LONG, draw_picture(2))
    answers = complete(messages, "vcd", 16, n=3, temperature=1.5, seed=5).choices
    texts = [choice.message.content for choice in answers]
    assert [choice.index for choice in answers] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert texts[0] == text_of(complete(messages, "vcd", 16, temperature=1.5, seed=5))


def test_limits_differ_within_a_batch(complete, guard):
    limits = (2, 5, 9)
    messages = [ask(LONG, draw_picture(index)) for index in range(3)]
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda pair: complete(pair[0], "both", pair[1]), zip(messages, limits, strict=True)))
    for index, (answer, limit) in enumerate(zip(answers, limits, strict=True)):
        expected = guard.chat(local_messages(LONG, draw_picture(index)), stack="vcd+pai", max_new_tokens=limit)
        assert text_of(answer) == expected
        assert answer.choices[0].finish_reason == ("length" if answer.usage.completion_tokens == limit else "stop")


def test_an_answer_ends_before_a_stop(complete):
    messages = ask(LONG, draw_picture(1))
    whole = text_of(complete(messages, "both", 24))
    stop = "flag"
    assert stop in whole
    cut = whole[: whole.index(stop)].strip()
    answer = complete(messages, "both", 24, stop=[stop, "never said"])
    assert text_of(answer) == cut
    assert cut != whole
    assert answer.choices[0].finish_reason == "stop"
    assert join(complete(messages, "both", 24, stop=stop, stream=True)) == cut


def test_a_conversation_without_pictures_runs_plain(complete, guard):
    messages = [{"role": "system", "content": "you are a helpful assistant"}, *ask("what colour is the moon ?")]
    expected = guard.chat(
        [{"role": "system", "content": "you are a helpful assistant"}, *local_messages("what colour is the moon ?")],
        stack=None, max_new_tokens=6,
    )  # fmt: skip
    assert text_of(complete(messages, "vcd", 6)) == expected


def test_several_pictures_and_turns(complete, guard):
    pictures = draw_picture(1), draw_picture(2)
    turns = [{"role": "assistant", "content": "a boat"}, {"role": "user", "content": "and what is red ?"}]
    expected = guard.chat([*local_messages("what is this ?", *pictures), *turns], max_new_tokens=6)
    assert text_of(complete([*ask("what is this ?", *pictures), *turns], "vcd", 6)) == expected


def test_a_report_is_that_of_the_request_alone(complete):
    messages = ask(LONG, draw_picture(1))
    with ThreadPoolExecutor(3) as pool:
        others = [pool.submit(complete, ask(LONG, draw_picture(index)), "both", 10) for index in range(2)]
        answer = pool.submit(complete, messages, "both", 10, report=True).result()
        assert all(other.result().choices for other in others)
    report = answer.guard["report"]
    assert report["rows"] == 1
    assert [strategy["name"] for strategy in report["strategies"]] == ["vcd", "pai"]
    assert "model" not in report["origin"]  # a folder of the server's
    assert text_of(answer) == text_of(complete(messages, "both", 10))


def test_models_are_listed_with_their_stacks(client):
    listing = client.models.list().data
    assert [entry.id for entry in listing][:2] == ["testbed", "testbed:vcd"]
    assert listing[0].guard["default"] == "vcd"
    assert listing[0].guard["stacks"]["both"] == ["vcd", "pai"]
    assert listing[0].guard["stacks"]["plain"] == []
