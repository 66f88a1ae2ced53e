"""What lmms-eval puts into a request, and what generate is given for it."""

from __future__ import annotations

import pytest

from lvlm_guard import GuardWarning, InputError
from lvlm_guard.harness.asked import cut, settings, unpack, until

DOCUMENTS = {"drawn": {"test": {4: "is there a car ?"}}}
CHAT = [{"role": "user", "content": [{"type": "image", "url": "a.png"}, {"type": "text", "text": "?"}]}]


def say(document):
    return [{"role": "user", "content": [{"type": "text", "text": document}]}]


@pytest.mark.parametrize("context", [(), ("a context",)], ids=["five", "six"])
def test_a_request_has_five_or_six_arguments(context):
    given = {"max_new_tokens": 3, "until": ["x"]}
    found = unpack((*context, say, given, 4, "drawn", "test"), DOCUMENTS, length=9)
    assert found.messages == say("is there a car ?")
    assert found.settings == {"max_new_tokens": 3, "do_sample": False}
    assert found.until == ("x",)


def test_a_conversation_knows_whether_it_has_a_picture():
    with_one, without = (
        unpack((say_it, {}, 4, "drawn", "test"), DOCUMENTS, length=9) for say_it in (lambda _: CHAT, say)
    )
    assert with_one.has_picture
    assert not without.has_picture


@pytest.mark.parametrize(
    "arguments",
    [
        ("a context", {"until": []}, say, 4, "drawn", "test"),
        ("a context", {}, say, say, 4, "drawn", "test"),
        ("a context", say, 4),
    ],
    ids=["simple", "agentic", "short"],
)
def test_requests_of_other_kinds_are_refused(arguments):
    with pytest.raises(InputError, match="chat kind"):
        unpack(arguments, DOCUMENTS, length=9)


@pytest.mark.parametrize("kind", ["video", "audio"])
def test_video_and_audio_are_refused_by_name(kind):
    def show(_):
        return [{"role": "user", "content": [{"type": kind, "url": "a"}]}]

    with pytest.raises(InputError, match=f"drawn: .*{kind}"):
        unpack((show, {}, 4, "drawn", "test"), DOCUMENTS, length=9)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, {"do_sample": False}),
        ({"temperature": 0, "top_p": 0, "num_beams": 1}, {"do_sample": False, "num_beams": 1}),
        ({"temperature": 0, "do_sample": True}, {"do_sample": False}),
        ({"temperature": 0.2, "do_sample": False, "top_p": None}, {"do_sample": False}),
        ({"temperature": 0.2, "top_p": 0.9}, {"do_sample": True, "temperature": 0.2, "top_p": 0.9}),
        ({"do_sample": True}, {"do_sample": True}),
    ],
)
def test_sampling_needs_a_temperature_above_zero_and_no_refusal(given, wanted):
    assert settings(given, 9) == {**wanted, "max_new_tokens": 9}


@pytest.mark.parametrize(
    ("given", "length"), [({}, 9), ({"max_gen_toks": 5}, 5), ({"max_new_tokens": 7, "max_gen_toks": 5}, 7)]
)
def test_the_length_limit_has_two_names_and_a_default(given, length):
    assert settings(given, 9)["max_new_tokens"] == length


def test_what_generate_does_not_know_is_left_out_and_said():
    with pytest.warns(GuardWarning, match=r"left out: image_aspect_ratio, visual_cot\."):
        assert "visual_cot" not in settings({"visual_cot": True, "image_aspect_ratio": "pad", "until": []}, 9)


@pytest.mark.parametrize(
    ("given", "blank_line", "stops"),
    [
        (None, False, ()),
        ("x", False, ("x",)),
        (["\n\n"], False, ()),
        (["\n\n"], True, ("\n\n",)),
        (["", "a", "\n\n"], False, ("a",)),
    ],
)
def test_a_blank_line_ends_an_answer_only_on_request(given, blank_line, stops):
    assert until(given, blank_line=blank_line) == stops


@pytest.mark.parametrize(
    ("stops", "left"),
    [((), "one, two. three"), ((".", ","), "one"), ((" three",), "one, two."), (("four",), "one, two. three")],
)
def test_a_text_is_cut_at_the_first_stop(stops, left):
    assert cut("one, two. three ", stops) == left
