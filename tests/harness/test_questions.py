"""How requests of lmms-eval become questions, and their settings arguments of generate."""

from __future__ import annotations

import pytest

from lvlm_guard import GuardWarning, InputError
from lvlm_guard.harness.questions import cut_at_stop, read_request, read_stops, translate_settings

DOCUMENTS = {"drawn": {"test": {4: "is there a car ?"}}}
CHAT = [{"role": "user", "content": [{"type": "image", "url": "a.png"}, {"type": "text", "text": "?"}]}]


def write_chat(document):
    return [{"role": "user", "content": [{"type": "text", "text": document}]}]


@pytest.mark.parametrize("context", [(), ("a context",)], ids=["five", "six"])
def test_a_request_has_five_or_six_arguments(context):
    task_settings = {"max_new_tokens": 3, "until": ["x"]}
    question = read_request((*context, write_chat, task_settings, 4, "drawn", "test"), DOCUMENTS, length=9)
    assert question.messages == write_chat("is there a car ?")
    assert question.settings == {"max_new_tokens": 3, "do_sample": False}
    assert question.stops == ("x",)


def test_a_conversation_knows_whether_it_has_a_picture():
    with_picture, without_picture = (
        read_request((to_messages, {}, 4, "drawn", "test"), DOCUMENTS, length=9)
        for to_messages in (lambda _: CHAT, write_chat)
    )
    assert with_picture.has_picture
    assert not without_picture.has_picture


@pytest.mark.parametrize(
    "arguments",
    [
        ("a context", {"until": []}, write_chat, 4, "drawn", "test"),
        ("a context", {}, write_chat, write_chat, 4, "drawn", "test"),
        ("a context", write_chat, 4),
    ],
    ids=["simple", "agentic", "short"],
)
def test_requests_of_other_kinds_are_refused(arguments):
    with pytest.raises(InputError, match="chat kind"):
        read_request(arguments, DOCUMENTS, length=9)


@pytest.mark.parametrize("kind", ["video", "audio"])
def test_video_and_audio_are_refused_by_name(kind):
    def show(_):
        return [{"role": "user", "content": [{"type": kind, "url": "a"}]}]

    with pytest.raises(InputError, match=f"drawn: .*{kind}"):
        read_request((show, {}, 4, "drawn", "test"), DOCUMENTS, length=9)


@pytest.mark.parametrize(
    ("task_settings", "arguments"),
    [
        ({}, {"do_sample": False}),
        ({"temperature": 0, "top_p": 0, "num_beams": 1}, {"do_sample": False, "num_beams": 1}),
        ({"temperature": 0, "do_sample": True}, {"do_sample": False}),
        ({"temperature": 0.2, "do_sample": False, "top_p": None}, {"do_sample": False}),
        ({"temperature": 0.2, "top_p": 0.9}, {"do_sample": True, "temperature": 0.2, "top_p": 0.9}),
        ({"do_sample": True}, {"do_sample": True}),
    ],
)
def test_sampling_needs_a_temperature_above_zero_and_no_refusal(task_settings, arguments):
    assert translate_settings(task_settings, 9) == {**arguments, "max_new_tokens": 9}


@pytest.mark.parametrize(
    ("task_settings", "length"), [({}, 9), ({"max_gen_toks": 5}, 5), ({"max_new_tokens": 7, "max_gen_toks": 5}, 7)]
)
def test_the_length_limit_has_two_names_and_a_default(task_settings, length):
    assert translate_settings(task_settings, 9)["max_new_tokens"] == length


def test_settings_unknown_to_generate_are_left_out_with_a_warning():
    with pytest.warns(GuardWarning, match=r"left out: image_aspect_ratio, visual_cot\."):
        assert "visual_cot" not in translate_settings({"visual_cot": True, "image_aspect_ratio": "pad", "until": []}, 9)


@pytest.mark.parametrize(
    ("until", "blank_line", "stops"),
    [
        (None, False, ()),
        ("x", False, ("x",)),
        (["\n\n"], False, ()),
        (["\n\n"], True, ("\n\n",)),
        (["", "a", "\n\n"], False, ("a",)),
    ],
)
def test_a_blank_line_ends_an_answer_only_on_request(until, blank_line, stops):
    assert read_stops(until, blank_line=blank_line) == stops


@pytest.mark.parametrize(
    ("stops", "start"),
    [((), "one, two. three"), ((".", ","), "one"), ((" three",), "one, two."), (("four",), "one, two. three")],
)
def test_a_text_is_cut_at_the_first_stop(stops, start):
    assert cut_at_stop("one, two. three ", stops) == start
