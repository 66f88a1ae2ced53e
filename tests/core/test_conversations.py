"""Conversations: the next turn runs only what is new, and answers as the whole conversation does."""

import pytest
import torch
from coloured_pictures import draw_pictures
from looks import BOTH

from lvlm_guard import Guard, InputError
from lvlm_guard.testbed.model import load as load_bundled
from lvlm_guard.testing.processing import TinyProcessor
from lvlm_guard.testing.tiny import tiny

pytestmark = pytest.mark.filterwarnings("ignore::lvlm_guard.errors.NoEffectWarning")
SETTINGS = {"max_new_tokens": 4, "do_sample": False}
PAI = {"name": "pai", "params": {"alpha": 2.0, "layers": [0, 2]}}


def say(role, *content):
    items = [
        {"type": "text", "text": item} if isinstance(item, str) else {"type": "image", "image": item}
        for item in content
    ]
    return {"role": role, "content": items}


def talk(guard, talking, turns, **settings):
    """The answers of a conversation, and those of whole conversations."""
    messages, answers, expected = [], [], []
    for turn in turns:
        messages.append(turn)
        answers.append(guard.chat(messages, cache=talking, **{**SETTINGS, **settings}))
        prompts = guard.report.prompts
        expected.append(guard.chat(messages, **{**SETTINGS, **settings}))
        messages.append(say("assistant", answers[-1]))
    return answers, expected, prompts


def make(name, stack):
    model, _ = tiny(name)
    return Guard(model, TinyProcessor(name), stack)


@pytest.mark.parametrize("stack", ["plain", "vcd", "vdd", [PAI], "icd+m3id", "sid"], ids=str)
@pytest.mark.parametrize("name", [*BOTH, "gemma3"])
def test_every_turn_is_answered_as_the_whole_conversation_is(name, stack):
    guard = make(name, stack)
    turns = [
        say("user", draw_pictures(1)[0], "what is w17 here"),
        say("user", "and w31"),
        say("user", "why w22 w23 w24"),
    ]
    answers, expected, prompts = talk(guard, guard.conversation(), turns)
    assert answers == expected
    assert prompts["main"] == "shared"


def test_a_turn_runs_only_what_is_new():
    guard = make("llava", "vcd+vdd")
    positions, pictures = [], []
    guard.model.get_decoder().layers[0].register_forward_hook(
        lambda _, args, output: positions.append(args[0].shape[1])
    )
    guard.model.model.vision_tower.register_forward_hook(lambda *_: pictures.append(1))
    messages, talking = [say("user", draw_pictures(1)[0], "what is w17 here")], guard.conversation()
    messages.append(say("assistant", talking.chat(messages, **SETTINGS)))
    messages.append(say("user", "and w31 w32"))
    positions.clear(), pictures.clear()
    talking.chat(messages, max_new_tokens=1)
    new = (
        1 + len(messages[1]["content"][0]["text"].split()) + 3
    )  # the last token of the turn before, its answer, the question
    assert pictures == []
    assert positions == [new - 1] * 4 + [1] * 4
    assert guard.report.forwards.prefill == 8


def test_pictures_come_in_any_turn():
    guard = Guard(*load_bundled(), "vcd+vdd")
    first, second = (picture.resize((64, 64)) for picture in draw_pictures(2))
    texts = ["What is this?", "Is there a circle?", "And here?", "Is there a dog in one of them?"]
    contents = [(first, texts[0]), (texts[1],), (second, texts[2]), (texts[3],)]
    turns = [say("user", *content) for content in contents]
    answers, expected, prompts = talk(guard, guard.conversation(), turns)
    assert answers == expected
    assert set(prompts.values()) == {"shared"}


@pytest.mark.parametrize("name", ["llava", "gemma3", "mllama"])
def test_a_turn_that_was_rewritten_is_run_anew(name):
    guard, picture = make(name, "vcd"), draw_pictures(1)[0]
    talking = guard.conversation()
    for question in ("w17 w18 w19 w20", "w17 w18 w44", "w50", "w17 w18 w19 w20 w21"):
        messages = [say("user", picture, question)]
        assert talking.chat(messages, **SETTINGS) == guard.chat(messages, **SETTINGS)
    assert talking.chat([say("user", draw_pictures(2)[1], "w17")], **SETTINGS)


def test_what_changed_is_run_anew():
    guard, messages = make("llava", "vcd"), [say("user", draw_pictures(1)[0], "w17 w18")]
    talking = guard.conversation()
    talking.chat(messages, **SETTINGS)
    with torch.no_grad():
        guard.model.get_decoder().layers[0].mlp.down_proj.weight.mul_(1.3)
    assert talking.chat(messages, **SETTINGS) == guard.chat(messages, **SETTINGS)
    guard.stack = "vdd"
    assert talking.chat(messages, **SETTINGS) == guard.chat(messages, **SETTINGS)
    assert len(guard.report.strategies) == 1


@pytest.mark.parametrize("settings", [{"num_beams": 3}, {"do_sample": True, "temperature": 1.3}], ids=str)
def test_beams_and_sampling_go_on_from_a_conversation(settings):
    guard = make("llava", "vcd")
    turns = [say("user", draw_pictures(1)[0], "w17"), say("user", "w31 w32")]
    messages, talking = [], guard.conversation()
    for turn in turns:
        messages.append(turn)
        torch.manual_seed(0)
        answer = talking.chat(messages, **{**SETTINGS, **settings})
        torch.manual_seed(0)
        assert answer == guard.chat(messages, **{**SETTINGS, **settings})
        messages.append(say("assistant", answer))


def test_a_conversation_that_nobody_can_hold_is_refused():
    guard, messages = make("llava", "vcd"), [say("user", draw_pictures(1)[0], "w17 w18")]
    with pytest.raises(InputError, match="one conversation"):
        guard.conversation().chat([messages, messages])
    for cache in (3, guard.using("vdd").conversation()):
        with pytest.raises(InputError, match="conversation of this guard"):
            guard.chat(messages, cache=cache)
    talking = guard.conversation()
    with pytest.raises(InputError, match="of one stack"):
        talking.chat(messages, stack="vdd")
    assert talking.chat(messages, **SETTINGS) == guard.chat(messages, **SETTINGS)
