"""Questions that a strategy asks before it finishes go on from the prompts of the answer, and are answered as by chat."""

import gc
import weakref
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from coloured_pictures import draw_pictures
from looks import BOTH, TOLERANCE, error_between
from lvlm_guard_augmentation.revise import Revise

from lvlm_guard import Guard, InputEdit, Insert, hookimpl
from lvlm_guard.call.looks.pictures import INEXACT
from lvlm_guard.forward import decode, kept_prompts
from lvlm_guard.testbed.model import load as load_bundled
from lvlm_guard.testing.processing import TinyProcessor
from lvlm_guard.testing.tiny import tiny

pytestmark = pytest.mark.filterwarnings("ignore::lvlm_guard.errors.NoEffectWarning")
QUESTIONS = ["is a dog here", "is w17 w18 w19 here or not", "cat"]
SETTINGS = {"max_new_tokens": 16, "do_sample": False}
OTHERWISE = "the prompt of the answer begins otherwise"


@dataclass(frozen=True)
class Asks:
    """Asks questions about the picture of each row once it is answered."""

    name: ClassVar[str] = "asks"
    answers: Any
    questions: tuple[str, ...] = tuple(QUESTIONS)
    __hash__ = object.__hash__

    @hookimpl
    def finish(self, gen: Any) -> Any:
        self.answers.extend(gen.ask(self.questions, row) for row in range(len(gen.output_ids)))
        return []


@dataclass(frozen=True)
class Records:
    """Keeps the logits of every step of a call by itself, or of calls within a call."""

    name: ClassVar[str] = "records"
    steps: Any
    inner: bool = True
    __hash__ = object.__hash__

    @hookimpl
    def observe(self, gen: Any) -> None:
        if gen.is_inner is self.inner:
            self.steps.append(gen.combined[:, -1].clone())


@dataclass(frozen=True)
class Prepends:
    """Lengthens main's prompt."""

    name: ClassVar[str] = "prepends"

    @hookimpl
    def edit_inputs(self, gen: Any) -> Any:
        yield InputEdit(tokens=(Insert(ids=(21, 22), place="after_image"),))


def message(picture, question):
    return [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": question}]}]


def count_long(model, shapes, floor):
    """Note the forwards that run at least `floor` positions."""

    def note(_, args, output):
        if args[0].shape[1] >= floor:
            shapes.append(tuple(args[0].shape[:2]))

    return model.get_decoder().layers[0].register_forward_hook(note)


def answer(name, stack, questions=tuple(QUESTIONS), caption="w17 w18"):
    """Return the guard, the picture and the answers of questions of a second call: in the first the model is tried."""
    answers, picture = [], draw_pictures(1)[0]
    model, _ = tiny(name)
    guard = Guard(model, TinyProcessor(name), [*stack, Asks(answers, questions)])
    guard.chat(message(picture, caption), max_new_tokens=3)
    answers.clear()
    guard.chat(message(picture, caption), max_new_tokens=3)
    return guard, picture, answers[0]


ARCHITECTURES = (*BOTH, "gemma3", "mllama", "idefics3", "internvl")
FAST = [("llava", "vcd"), ("llava", "pai+vcd+vaf"), ("qwen2_vl", "vdd+m3id")]
STACKS = {
    "vcd": ["vcd"],
    "pai+vcd+vaf": [
        {"name": "pai", "params": {"alpha": 2.0, "gamma": 3.0, "layers": [0, 2]}},
        "vcd",
        {"name": "vaf", "params": {"enhance": 4.0, "suppress": 0.2, "layers": [0, 2]}},
    ],
    "vdd+m3id": ["vdd", {"name": "m3id", "params": {"decay": 0.7}}],
}


CASES = [
    pytest.param(name, stack, marks=[] if (name, stack) in FAST else pytest.mark.slow)
    for name in ARCHITECTURES
    for stack in STACKS
]


@pytest.mark.parametrize(("name", "stack"), CASES)
def test_questions_go_on_from_the_prompts_of_the_answer_exactly(name, stack):
    steps, expected_steps, question, stack = [], [], "is w19 here", STACKS[stack]
    guard, picture, _ = answer(name, [*stack, Records(steps)], (question,))
    assert set(guard.report.questions.values()) == {"shared"}
    assert len(guard.report.questions) == 1 + len(guard.report.branches)
    steps.clear()
    guard.chat(message(picture, "w17 w18"), max_new_tokens=3)
    guard.using([*stack, Records(expected_steps, inner=False)]).chat(message(picture, question), **SETTINGS)
    assert error_between(steps, expected_steps) < TOLERANCE
    plain_steps = []
    guard.using([Records(plain_steps, inner=False)]).chat(message(picture, question), **SETTINGS)
    kept = expected_steps[0] > -1e4
    assert float((expected_steps[0] - plain_steps[0])[kept].abs().max()) > 0.05
    caption_steps = []
    guard.using([Records(caption_steps, inner=False)]).chat(message(picture, "w17 w18"), max_new_tokens=1)
    assert float((plain_steps[0] - caption_steps[0]).abs().max()) > 0.05


def test_the_picture_runs_once_for_the_answer_and_all_questions():
    guard, picture, answers = answer("llava", ["vcd"])
    shapes, pictures = [], []
    count_long(guard.model, shapes, 20)
    guard.model.model.vision_tower.register_forward_hook(lambda *_: pictures.append(1))
    guard.chat(message(picture, "w17 w18"), max_new_tokens=3)  # hooks change the model, which is tried again
    shapes.clear(), pictures.clear()
    guard.chat(message(picture, "w17 w18"), max_new_tokens=3)
    assert shapes == [(1, 28), (1, 28)]
    assert len(pictures) == 2
    asking = guard.using("vcd")
    assert answers == [asking.chat(message(picture, text), **SETTINGS) for text in QUESTIONS]


def test_revise_asks_on_the_prompt_of_its_caption():
    model, processor = load_bundled()
    picture = draw_pictures(1)[0].resize((64, 64))
    guard = Guard(model, processor, ["vcd", Revise(splitter=split_into_words)])
    batch = guard.inputs(messages=message(picture, "Describe the image."))
    guard.generate(**batch, max_new_tokens=4)
    shapes = []
    handle = count_long(guard.model, shapes, 40)
    guard.generate(**batch, max_new_tokens=4)
    shapes.clear()
    guard.generate(**batch, max_new_tokens=4)
    handle.remove()
    assert shapes == [(1, batch["input_ids"].shape[1])] * 2
    assert set(guard.report.questions.values()) == {"shared"}


def split_into_words(sentence):
    return [(word, f"Is there {word} in the image?") for word in dict.fromkeys(sentence.split())]


@pytest.mark.parametrize("settings", [{}, {"num_beams": 2}], ids=str)
@pytest.mark.parametrize("name", ["llava", pytest.param("mllama", marks=pytest.mark.slow)])
def test_every_row_of_a_padded_batch_goes_on_from_its_own(name, settings):
    answers, drawn = [], draw_pictures(2)
    model, _ = tiny(name)
    guard = Guard(model, TinyProcessor(name), ["vcd", Asks(answers)])
    batch = guard.inputs(messages=[message(drawn[0], "w17"), message(drawn[1], "w31 w32 w33")])
    for _ in range(2):
        answers.clear()
        guard.generate(**batch, max_new_tokens=3, do_sample=False, **settings)
    assert set(guard.report.questions.values()) == {"shared"}
    asking = guard.using("vcd")
    assert answers == [[asking.chat(message(picture, text), **SETTINGS) for text in QUESTIONS] for picture in drawn]
    assert answers[0] != answers[1]


def test_a_prompt_that_begins_otherwise_is_not_gone_on_from():
    answers, picture = [], draw_pictures(1)[0]
    model, _ = tiny("llava")
    guard = Guard(model, TinyProcessor("llava"), ["vcd", Asks(answers)])
    batch, shapes = guard.inputs(images=[picture], text=["<image> w17"]), []
    count_long(model, shapes, 20)
    guard.generate(**batch, max_new_tokens=1)  # the model is tried
    shapes.clear()
    guard.generate(**batch, max_new_tokens=1)
    assert guard.report.questions == {"main": OTHERWISE}
    assert shapes == [(1, 26)] * 4
    asking = guard.using("vcd")
    assert answers[1] == [asking.chat(message(picture, text), **SETTINGS) for text in QUESTIONS]


@pytest.mark.parametrize(
    ("stack", "settings", "reason"),
    [
        (["opera"], {}, "'opera' kept candidates of its own"),
        ([Prepends()], {}, "'prepends' edited main's own inputs"),
        (["vcd"], {"use_cache": False}, "there is no cache"),
    ],
    ids=str,
)
def test_the_report_says_why_questions_did_not_go_on_from_the_answer(stack, settings, reason):
    answers, picture = [], draw_pictures(1)[0]
    model, _ = tiny("llava")
    guard = Guard(model, TinyProcessor("llava"), [*stack, Asks(answers)])
    guard.chat(message(picture, "w17 w18"), max_new_tokens=3, **settings)
    assert reason in guard.report.questions["main"]
    asking = guard.using([strategy for strategy in stack if strategy == "vcd"] or None)
    assert answers == [[asking.chat(message(picture, text), **SETTINGS) for text in QUESTIONS]]


def test_a_model_that_changed_since_the_answer_is_not_gone_on_from():
    model, _ = tiny("llava")

    @dataclass(frozen=True, eq=False)
    class Trains(Asks):
        @hookimpl
        def finish(self, gen: Any) -> Any:
            with torch.no_grad():
                model.get_decoder().layers[0].mlp.down_proj.weight.add_(0.2)
            return super().finish(gen)

    answers, picture = [], draw_pictures(1)[0]
    guard = Guard(model, TinyProcessor("llava"), ["vcd", Trains(answers)])
    guard.chat(message(picture, "w17 w18"), max_new_tokens=3)
    assert guard.report.questions == {"main": "the model was changed since the answer"}
    asking = guard.using("vcd")
    assert answers == [[asking.chat(message(picture, text), **SETTINGS) for text in QUESTIONS]]


def test_a_prompt_that_is_cut_wrongly_is_noticed(monkeypatch):
    cut = kept_prompts.cut_row
    monkeypatch.setattr(kept_prompts, "cut_row", lambda cache, row, start, *rest: cut(cache, row, start + 1, *rest))
    guard, picture, answers = answer("llava", ["vcd"])
    assert guard.report.questions == {"main": INEXACT}
    asking = guard.using("vcd")
    assert answers == [asking.chat(message(picture, text), **SETTINGS) for text in QUESTIONS]


def test_a_beginning_that_reads_what_follows_is_noticed():
    guard, picture, answers = answer("paligemma", ["vcd"])
    assert guard.report.questions == {"main": INEXACT}
    asking = guard.using("vcd")
    assert answers == [asking.chat(message(picture, text), **SETTINGS) for text in QUESTIONS]


def test_nothing_of_the_prompts_is_left_after_the_call(monkeypatch):
    kept = []

    def keep(*args):
        prompt = kept_prompts.keep_prompt(*args)
        kept.append(weakref.ref(prompt))
        return prompt

    monkeypatch.setattr(decode, "keep_prompt", keep)
    answer("llava", ["vcd"])
    gc.collect()
    assert len(kept) == 2
    assert all(reference() is None for reference in kept)


def test_nothing_is_kept_where_nobody_asks(monkeypatch):
    monkeypatch.setattr(decode, "keep_prompt", None)
    model, _ = tiny("llava")
    guard = Guard(model, TinyProcessor("llava"), ["vcd", Revise(rounds=0)])
    guard.chat(message(draw_pictures(1)[0], "w17"), max_new_tokens=2)
    assert guard.report.questions == {}


@pytest.mark.parametrize("name", ["llava", pytest.param("gemma3", marks=pytest.mark.slow)])
def test_questions_of_answers_on_a_look_go_on_from_them(name):
    answers, picture = [], draw_pictures(1)[0]
    model, _ = tiny(name)
    guard = Guard(model, TinyProcessor(name), ["vcd", Asks(answers)])
    with guard.looking(picture) as look:
        look.ask(["w17", "w31 w32 w33"], max_new_tokens=2)  # with a gap, or in groups of one length
    assert set(guard.report.prompts.values()) == {"shared"}
    assert set(guard.report.questions.values()) == {"shared"}
    asking = guard.using("vcd")
    assert answers == [[asking.chat(message(picture, text), **SETTINGS) for text in QUESTIONS]] * 2
