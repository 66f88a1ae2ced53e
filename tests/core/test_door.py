"""The public door: inputs, chat, reports, pictures from everywhere."""

import json
import threading

import numpy as np
import pytest
import torch
from gold import SUPPRESSED, Against, disturbed
from PIL import Image
from toy_processor import toy_processor

import lvlm_guard
from lvlm_guard import Guard, InputError, Stack
from lvlm_guard.testing import tiny

SETTINGS = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": SUPPRESSED}
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8))


@pytest.fixture
def guard():
    return Guard(tiny("llava")[0], toy_processor(), [Against("noised")])


def messages(text, image=PICTURE):
    return [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": text}]}]


def test_inputs_are_the_processors_own_batch(guard):
    batch = guard.inputs(images=PICTURE, text="user : <image> a b")
    wanted = guard.processor(images=PICTURE, text="user : <image> a b", return_tensors="pt")
    assert all(torch.equal(batch[name], wanted[name]) for name in wanted)


def test_messages_go_through_the_chat_template(guard, tmp_path):
    path = tmp_path / "one.png"
    PICTURE.save(path)
    wanted = guard.inputs(images=PICTURE, text="user : <image> a b assistant :")
    for given in (
        {"messages": messages("a b")},
        {"messages": messages("a b", str(path))},
        {"messages": [{"role": "user", "content": "a b"}], "images": PICTURE},
        {
            "messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a b"}]}],
            "images": [path],
        },
    ):
        got = guard.inputs(**given)
        assert torch.equal(got["input_ids"], wanted["input_ids"])
        assert torch.equal(got["pixel_values"], wanted["pixel_values"])


def test_a_batch_is_padded_on_the_left_and_the_tokenizer_left_alone(guard):
    guard.processor.tokenizer.padding_side = "right"
    batch = guard.inputs(images=[PICTURE, PICTURE], text=["<image> a", "<image> a b c"])
    assert batch["attention_mask"][0, :2].tolist() == [0, 0]
    assert guard.processor.tokenizer.padding_side == "right"


def test_chat_answers_in_text(guard):
    one = guard.chat(messages("a b"), **SETTINGS)
    many = guard.chat([messages("a b"), messages("c d e")], **SETTINGS)
    assert isinstance(one, str)
    assert one
    assert many[0] == one
    assert len(many) == 2
    raw = guard.generate(**guard.inputs(messages=messages("a b")), **SETTINGS)
    assert one == guard.processor.decode(raw[0][-4:], skip_special_tokens=True).strip()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "text= or messages="),
        ({"text": "a", "messages": []}, "text= or messages="),
        ({"images": "nowhere.png", "text": "<image>"}, "nowhere.png"),
        ({"images": 3, "text": "<image>"}, "got int"),
        ({"messages": []}, "messages is empty"),
        ({"messages": [{"content": "a"}]}, "role and content"),
        ({"messages": [{"role": "system", "content": "a"}], "images": PICTURE}, "no message of the user"),
    ],
)
def test_what_cannot_be_prepared(guard, given, words):
    with pytest.raises(InputError, match=words):
        guard.inputs(**given)


def test_the_report_says_what_happened(guard):
    inputs = guard.inputs(images=PICTURE, text="<image> a b c d e")
    guard.generate(**inputs, **SETTINGS)
    report = guard.report
    one = report.strategies[0]
    assert (one.name, one.branches, one.had_effect) == ("against", ("noised",), True)
    assert 0 < one.tokens_changed <= one.positions == 4
    assert (report.executor, report.forwards.prefill, report.forwards.decode) == ("batched", 2.0, 1.0)
    assert (report.rows, report.tokens, report.rows_per_forward) == (1, 4, 2)
    assert json.loads(report.to_json())["strategies"][0]["tokens_changed"] == one.tokens_changed
    sequential = Guard(guard.model, None, [Against("noised")], executor="sequential")
    sequential.generate(**inputs, **SETTINGS)
    assert sequential.report.forwards.decode == 2.0
    assert sequential.report.strategies == report.strategies


def test_changes_are_counted_against_main_in_unfinished_rows_only(guard):
    inputs = guard.inputs(images=[PICTURE, PICTURE.rotate(90)], text=["<image> a b", "<image> c d"])
    free = guard.generate(**inputs, **SETTINGS)[:, -4:]
    end = int(free[0, 0])
    assert end not in free[1].tolist(), "no power: both rows end together"
    output = guard.generate(**inputs, **SETTINGS, eos_token_id=end, pad_token_id=0)
    assert guard.report.strategies[0].positions == 1 + 4
    plain_best = 0
    for row in range(2):
        single = {name: value[row : row + 1] for name, value in inputs.items()}
        for step in range(1 if row == 0 else 4):
            ids = torch.cat([single["input_ids"], output[row : row + 1, inputs["input_ids"].shape[1] :][:, :step]], 1)
            with torch.no_grad():
                main = guard.model(input_ids=ids, pixel_values=single["pixel_values"]).logits[0, -1]
                noised = guard.model(input_ids=ids, pixel_values=disturbed(single["pixel_values"])).logits[0, -1]
            plain_best += int((2.5 * main - 1.5 * noised).argmax() != main.argmax())
    assert guard.report.strategies[0].tokens_changed == plain_best


def test_reports_belong_to_the_thread_that_made_the_call(guard):
    inputs = guard.inputs(images=PICTURE, text="<image> a b")
    guard.generate(**inputs, **SETTINGS)
    mine = guard.report
    seen = []

    def other():
        guard.generate(**inputs, **{**SETTINGS, "max_new_tokens": 2})
        seen.append(guard.report)

    worker = threading.Thread(target=other)
    worker.start()
    worker.join()
    assert guard.report is mine
    assert seen[0].tokens == 2


def test_an_empty_stack_is_plain_generate(guard):
    empty = Guard(guard.model, None, [])
    inputs = guard.inputs(images=PICTURE, text="<image> a b")
    assert torch.equal(empty.generate(**inputs, **SETTINGS), guard.model.generate(**inputs, **SETTINGS))
    assert (empty.report.strategies, empty.report.executor, empty.report.tokens) == ((), "none", 4)


def test_unknown_public_names_say_so():
    with pytest.raises(AttributeError, match="no attribute 'Gard'"):
        _ = lvlm_guard.Gard
    assert "Guard" in dir(lvlm_guard)


@pytest.mark.parametrize(
    "given", ["vcd", ["vcd"], Stack.of("vcd"), {"strategies": ["vcd"]}], ids=lambda one: type(one).__name__
)
def test_a_stack_where_the_processor_belongs_is_told_apart(given):
    model, _ = tiny("llava")
    with pytest.raises(InputError, match="Name the stack: Guard\\(model, stack="):
        Guard(model, given)
    with pytest.raises(InputError, match="processor, got int"):
        Guard(model, 3)
