"""Strategies that edit pictures, read image tokens, ask questions or belong to an adapter answer on a look as on whole prompts."""

import pytest
import torch
from coloured_pictures import draw_pictures
from evidence_heads import Asking, make_head
from looks import BOTH, DETAILS, RESTS, SETTINGS, TOLERANCE, build, continue_with, error_between
from lvlm_guard_augmentation import Revise
from lvlm_guard_evidence import PatchEvidence
from video_requests import IMAGE, VIDEO, request

from lvlm_guard import Guard, InputError
from lvlm_guard.testing.processing import TinyProcessor
from lvlm_guard.testing.tiny import tiny

pytestmark = pytest.mark.filterwarnings("ignore::lvlm_guard.errors.NoEffectWarning")
QUESTIONS = ["w81 w18", "w31 w82 w17 w34", "w35"]
MIRROR = {"name": "views", "params": {"views": ["mirrored"], "sides": [["w81", "w82"]], "weight": 3.0}}
STACKS = {
    "windows": [{"name": "views", "params": {"views": ["zoom", "contrast"], "weight": 3.0}}, "vcd"],
    "mirrored": [MIRROR],
    "ritual": ["ritual"],
    "icd": ["icd"],
}
FAST = {("llava", "windows"), ("llava", "mirrored")}


def ask(picture, question):
    return [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": question}]}]


def first_logits(guard, picture, questions):
    """Return the guarded logits of the first token of each answer on whole prompts."""
    settings = {**DETAILS, "max_new_tokens": 1, "do_sample": False}
    batches = [guard.inputs(messages=ask(picture, question)) for question in questions]
    return [guard.generate(**batch, **settings).logits[0][0] for batch in batches]


def apart(logits, others):
    """Return the largest difference of logits that no strategy removed, as a share of the largest of them."""
    pairs = [(one, other, (one > -1e4) & (other > -1e4)) for one, other in zip(logits, others, strict=True)]
    return max(float((one - other)[kept].abs().max() / other[kept].abs().max()) for one, other, kept in pairs)


@pytest.mark.parametrize(
    ("name", "stack"),
    [
        pytest.param(name, stack, marks=[] if (name, stack) in FAST else pytest.mark.slow)
        for name in (*BOTH, "gemma3", "internvl")
        for stack in STACKS
    ],
)
def test_strategies_that_edit_pictures_or_words(name, stack):
    picture, model = draw_pictures(1)[0], tiny(name)[0]
    guard = Guard(model, TinyProcessor(name), STACKS[stack])
    expected = first_logits(guard, picture, QUESTIONS)
    with guard.looking(picture) as look:
        actual = [look.first_logits([question])[0] for question in QUESTIONS]
        assert set(guard.report.prompts.values()) == {"shared"}
        answers = look.ask(QUESTIONS, max_new_tokens=4, do_sample=False)
    assert apart(actual, expected) < TOLERANCE
    assert answers == [guard.chat(ask(picture, text), max_new_tokens=4, do_sample=False) for text in QUESTIONS]
    assert apart(first_logits(guard.using(None), picture, QUESTIONS), expected) > 0.02


@pytest.mark.parametrize("name", ["llava", pytest.param("qwen2_vl", marks=pytest.mark.slow)])
def test_evidence_of_image_tokens_goes_to_questions_of_several_lengths(tmp_path, name):
    if name not in BOTH:
        pytest.skip("this version cannot look with it")
    plain, inputs, length = build(name, None)
    model = plain.model
    path, _ = make_head(tmp_path / "head", model)
    asked = ("is there a mug ?", "what color is the mug ?", "is there a spoon ?")
    batch = continue_with(inputs, length, RESTS["ragged"])

    def guard_asked(*questions):
        return Guard(model, Asking(*questions), [PatchEvidence(path), "vcd"])

    expected = guard_asked(*asked).generate(**batch, **SETTINGS, **DETAILS)
    others = guard_asked(*asked[1:], asked[0]).generate(**batch, **SETTINGS, **DETAILS)
    guard = guard_asked(*asked)
    with guard.looking(inputs) as look:
        look.generate(**batch, max_new_tokens=1)
        guard.processor.read = 0
        output = look.generate(**batch, **SETTINGS, **DETAILS)
    assert error_between(output.logits[:1], expected.logits[:1]) < TOLERANCE
    assert apart(others.logits[0], expected.logits[0]) > 0.01
    assert set(guard.report.prompts.values()) == {"shared"}


def split_into_words(sentence):
    return [(word, f"is {word} here") for word in dict.fromkeys(sentence.split())]


@pytest.mark.parametrize(("name", "threshold"), [("llava", 0.0), pytest.param("gemma3", 50.0, marks=pytest.mark.slow)])
def test_answers_on_a_look_are_revised_by_margins_and_evidence(tmp_path, name, threshold):
    model, _ = tiny(name)
    path, _ = make_head(tmp_path / "head", model)
    revise = Revise(splitter=split_into_words, evidence=path, threshold=threshold)
    picture, settings = draw_pictures(1)[0], {"max_new_tokens": 6, "do_sample": False}
    guard = Guard(model, TinyProcessor(name), ["vcd", revise])
    expected, records = [], []
    for question in QUESTIONS:
        expected.append(guard.chat(ask(picture, question), **settings))
        records.append(guard.report.results["revise"][0])
    with guard.looking(picture) as look:
        for question, answer, record in zip(QUESTIONS, expected, records, strict=True):
            assert look.ask(question, **settings) == answer
            compare_records(guard.report.results["revise"][0], record)
        assert look.ask(QUESTIONS, **settings) == expected
    plain = [guard.using("vcd").chat(ask(picture, question), **settings) for question in QUESTIONS]
    assert expected != plain


def compare_records(records, expected):
    assert [one["question"] for one in records] == [one["question"] for one in expected]
    for one, other in zip(records, expected, strict=True):
        for value in ("margin", "evidence", "score"):
            assert one[value] == pytest.approx(other[value], abs=1e-3), value


@pytest.mark.skipif("qwen2_vl" not in BOTH, reason="this version cannot look with it")
@pytest.mark.parametrize("head", [[8, *IMAGE, 7, *VIDEO], [8, *VIDEO, 7, *IMAGE], [8, *VIDEO]], ids=str)
def test_a_look_at_a_video(head):
    model, inputs = request("qwen2_vl", [*head, 9])
    _, batch = request("qwen2_vl", [*head, 9, 10, 11])
    guard = Guard(model, None, "vdd")
    expected = guard.generate(**batch, **SETTINGS, **DETAILS)
    with guard.looking(inputs) as look:
        look.generate(**batch, max_new_tokens=1)
        output = look.generate(**batch, **SETTINGS, **DETAILS)
    assert error_between(output.logits, expected.logits) < TOLERANCE
    assert set(guard.report.prompts.values()) == {"shared"}
    plain = guard.using(None).generate(**batch, **SETTINGS, **DETAILS)
    assert apart([plain.logits[0]], [expected.logits[0]]) > 0.02


def test_a_look_is_of_the_adapters_that_were_on():
    peft = pytest.importorskip("peft")
    guard, inputs, length = build("llava", "vcd")
    config = peft.LoraConfig(r=2, target_modules=r".*language_model.*(q_proj|v_proj)", init_lora_weights=False)
    model = peft.get_peft_model(guard.model, config, adapter_name="first")
    model.add_adapter("second", config)
    guard, batch = Guard(model, None, "vcd"), continue_with(inputs, length, RESTS["rows"])
    settings = {**SETTINGS, "max_new_tokens": 2}
    expected = guard.generate(**batch, **settings)
    with guard.looking(inputs) as look:
        assert torch.equal(look.generate(**batch, **settings), expected)
        model.set_adapter("second")
        with pytest.raises(InputError, match="model was changed while the guard looked"):
            look.generate(**batch, **settings)
        model.set_adapter("first")
        assert torch.equal(look.generate(**batch, **settings), expected)
        with model.disable_adapter(), pytest.raises(InputError, match="model was changed while the guard looked"):
            look.generate(**batch, **settings)
