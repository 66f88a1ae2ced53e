"""Outputs of generate that do not begin with the prompt: encoder-decoders, decodes from embeddings, classes that return answers alone."""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import own_generate
import pytest
import torch
from gold import SUPPRESSED, Against, contrast, disturbed
from PIL import Image
from toy_processor import toy_processor
from transformers import CLIPImageProcessor, LlavaProcessor
from versions import specimen_of

from lvlm_guard import Guard, InputEdit, Insert, ModelRefused, NoEffectWarning, Revision, hookimpl
from lvlm_guard.outputs import measure_prompt
from lvlm_guard.testing import tiny
from lvlm_guard.testing.recompute import next_logits

SETTINGS = {"max_new_tokens": 5, "do_sample": False, "suppress_tokens": SUPPRESSED}
KINDS = ("encoder-decoder", "bart", "cut prompt", "own", "embeddings", "images=")


@pytest.fixture(scope="module", params=KINDS)
def case(request):
    """A model, inputs of one row, and where its answers begin."""
    specimens = {"encoder-decoder": "t5gemma2", "bart": "florence2", "cut prompt": "blip"}
    classes = {
        "own": own_generate.OnlyNewTokens, "embeddings": own_generate.WithKeywords, "images=": own_generate.WithImages,
    }  # fmt: skip
    if request.param in classes:
        return *own_generate.build(classes[request.param]), 0
    specimen = specimen_of(specimens[request.param])
    row = specimen.row(text=12 if request.param == "bart" else 6)
    return specimen.model, row, row["input_ids"].shape[1] - 1 if request.param == "cut prompt" else 1


@pytest.mark.parametrize("mode", [{}, {"num_beams": 2, "num_return_sequences": 2}, {"use_cache": False}], ids=str)
def test_reports_count_the_answer_alone(case, mode):
    model, inputs, start = case
    settings = {"max_new_tokens": 5, "do_sample": False, **mode}
    plain = model.generate(**inputs, **settings)
    output, report = Guard(model, None, [Against("noised")]).generate_with_report(**inputs, **settings)
    assert report.strategies[0].had_effect
    assert output.shape == plain.shape
    assert report.answer_start == start
    assert report.tokens == output.shape[1] - start == 5
    assert len(report.requests) == len(output)
    if "num_beams" not in mode:
        assert not torch.equal(plain, output), "no power"
        positions = [change.position for change in report.requests[0].changes]
        assert positions
        answer = output[0, start:].tolist()
        assert all(answer[change.position] == change.guarded for change in report.requests[0].changes)
        (strategy,) = report.strategies
        assert (strategy.positions, strategy.tokens_changed) == (5, len(positions))


def test_plain_generate_counts_the_same(case):
    model, inputs, start = case
    _, report = Guard(model, None, []).generate_with_report(**inputs, **SETTINGS)
    assert (report.answer_start, report.tokens) == (start, 5)


def test_tokens_are_those_of_a_recompute(case):
    model, inputs, start = case
    if start:
        pytest.skip("the tests of every architecture do it")
    ids = "inputs" if "inputs" in inputs else "input_ids"
    pixels = "images" if "images" in inputs else "pixel_values"
    variants = [inputs, {**inputs, pixels: disturbed(inputs[pixels])}]
    expected = []
    for step in range(5):
        both = [next_step(model, ids, variant, expected) for variant in variants]
        logits = contrast(both, step)
        logits[SUPPRESSED] = -torch.inf
        expected.append(int(logits.argmax()))
    for executor in ("auto", "sequential"):
        guard = Guard(model, None, [Against("noised")], executor=executor)
        assert guard.generate(**inputs, **SETTINGS)[0].tolist() == expected


def next_step(model, ids, inputs, generated):
    if ids == "input_ids" and isinstance(model, own_generate.OnlyNewTokens):
        return next_logits(model, inputs, generated)
    grown = {name: value for name, value in inputs.items() if name != "attention_mask"}
    grown[ids] = torch.cat([inputs[ids], torch.tensor([generated], dtype=torch.long)], dim=1)
    return model.generate(**grown, max_new_tokens=1, output_logits=True, return_dict_in_generate=True).logits[0][0]


@dataclass(frozen=True)
class Asks:
    """Ask the picture a question, keep what the draft was, and write another answer."""

    name: ClassVar[str] = "asks"
    drafts: ClassVar[list[Any]] = []

    @hookimpl
    def finish(self, gen):
        self.drafts.append((gen.output_ids.clone(), gen.ask(["a b"], 0)))
        yield Revision(0, "c d e")


@dataclass(frozen=True)
class Lengthens(Against):
    """Lengthen the prompt, and contrast."""

    name: ClassVar[str] = "lengthens"

    @hookimpl
    def edit_inputs(self, gen):
        yield InputEdit(tokens=(Insert((8, 9, 10), "end"),))


def processor_of_florence() -> Any:
    """A processor that writes 17 placeholders for a picture of 16 by 16."""
    base, side = toy_processor(), {"height": 16, "width": 16}
    images = CLIPImageProcessor(size=side, crop_size=side, do_center_crop=False)
    return LlavaProcessor(
        images, base.tokenizer, patch_size=4, vision_feature_select_strategy="full", num_additional_image_tokens=1,
        chat_template=base.chat_template,
    )  # fmt: skip


@pytest.fixture(scope="module", params=["encoder-decoder", "own"])
def speaking(request):
    """A model, its processor, and where its answers begin."""
    if request.param == "own":
        return own_generate.build(own_generate.OnlyNewTokens)[0], toy_processor(), 0
    return specimen_of("florence2").model, processor_of_florence(), 1


MESSAGES = [
    {"role": "user", "content": [{"type": "image", "image": Image.new("RGB", (16, 16), (200, 30, 90))}, {"type": "text", "text": "a b"}]}
]  # fmt: skip


@pytest.mark.parametrize("stack", [[], [Against("noised")], [Lengthens("noised")]], ids=["plain", "guarded", "edited"])
def test_chat_says_the_whole_answer_and_nothing_else(speaking, stack):
    model, processor, start = speaking
    guard = Guard(model, processor, stack)
    settings = {**SETTINGS, "begin_suppress_tokens": [0, 1, 2, 3]}
    output = guard.generate(**guard.inputs(messages=MESSAGES), **settings)
    assert output.shape[1] == start + 5
    words = processor.batch_decode(output[:, start:], skip_special_tokens=True)[0].split()
    assert guard.chat(MESSAGES, **settings).split() == words
    assert len(words) >= 3


def test_revisions_replace_the_answer_alone(speaking):
    model, processor, start = speaking
    Asks.drafts.clear()
    guard = Guard(model, processor, [Against("noised"), Asks()])
    drafting = guard.using([Against("noised")])
    inputs = guard.inputs(messages=MESSAGES)
    draft = drafting.generate(**inputs, **SETTINGS)[:, start:]
    output, report = guard.generate_with_report(**inputs, **SETTINGS)
    (seen, answers), wanted = Asks.drafts[0], processor.tokenizer("c d e")["input_ids"]
    assert torch.equal(seen, draft)
    assert output[0, report.answer_start :].tolist() == wanted
    question = [{"role": "user", "content": [MESSAGES[0]["content"][0], {"type": "text", "text": "a b"}]}]
    assert answers == [drafting.chat(question, max_new_tokens=16, do_sample=False)]


def test_an_edited_prompt_is_put_back_as_the_class_begins_its_output():
    specimen = specimen_of("blip")
    row = specimen.row()
    plain = specimen.model.generate(**row, **SETTINGS)
    output, report = Guard(specimen.model, None, [Lengthens("noised")]).generate_with_report(**row, **SETTINGS)
    start = report.answer_start
    assert (start, output.shape) == (row["input_ids"].shape[1] - 1, plain.shape), "BLIP drops the last token"
    assert torch.equal(output[:, :start], plain[:, :start])


def test_a_class_that_returns_words_is_refused_by_name():
    model, inputs = own_generate.build(own_generate.InWords)
    with pytest.raises(ModelRefused, match="list instead of token ids"):
        Guard(model, None, [Against("noised")]).generate(**inputs, **SETTINGS)
    assert isinstance(Guard(model, None, []).generate(**inputs, **SETTINGS), list)
    with pytest.raises(ModelRefused, match="list instead of token ids"):
        Guard(model, toy_processor(), []).chat(MESSAGES, **SETTINGS)


def test_ids_in_front_that_nobody_knows_are_an_error_and_no_answer():
    model, inputs = own_generate.build(own_generate.Boasting)
    with pytest.raises(ModelRefused, match="begin neither with the prompt"):
        Guard(model, None, [Against("noised")]).generate(**inputs, **SETTINGS)


def test_rows_without_an_image_are_put_beside_answers_that_have_no_prompt():
    model, inputs = own_generate.build(own_generate.OnlyNewTokens)
    text = torch.full_like(inputs["input_ids"], 11)
    both = {"input_ids": torch.cat([inputs["input_ids"], text]), "pixel_values": inputs["pixel_values"]}
    guard = Guard(model, None, [Against("noised")], without_image="plain")
    output, report = guard.generate_with_report(**both, attention_mask=torch.ones_like(both["input_ids"]), **SETTINGS)
    assert (output.shape, report.answer_start, report.tokens) == ((2, 5), 0, 5)
    assert torch.equal(output[1:], model.generate(input_ids=text, **SETTINGS))


def test_stop_strings_and_finished_rows_are_found_in_the_answer_of_an_encoder_decoder():
    specimen = specimen_of("florence2")
    row, tokenizer = specimen.row(), toy_processor().tokenizer
    free = Guard(specimen.model, None, [Against("noised")]).generate(**row, **SETTINGS)[0, 1:].tolist()
    stop = tokenizer.convert_ids_to_tokens(free[1])
    seen = []

    class Watches(Against):
        @hookimpl
        def observe(self, gen):
            seen.append(gen.finished.tolist())

    guard = Guard(specimen.model, None, [dataclasses.dataclass(frozen=True)(Watches)("noised")])
    cut, report = guard.generate_with_report(**row, **SETTINGS, stop_strings=[stop], tokenizer=tokenizer)
    assert report.tokens == cut.shape[1] - 1 == free.index(free[1]) + 1
    assert seen == [[False]] * report.tokens


def test_the_longest_prompt_that_all_rows_begin_with_counts():
    ids = torch.tensor([[1, 2, 3, 9], [1, 2, 4, 9]])
    short, long = torch.tensor([[1]]), torch.tensor([[1, 2, 3], [1, 2, 4]])
    assert measure_prompt(ids, [short, long]) == 3
    assert measure_prompt(ids, [torch.tensor([[1, 2, 3]]), short]) == 1
    assert measure_prompt(ids, [torch.tensor([[2]])]) is None
    assert measure_prompt(ids, [torch.ones(3, 1)]) is None
    assert measure_prompt(ids, [torch.empty(2, 0)]) == 0


def test_answers_of_llava_begin_behind_its_prompt():
    model, inputs = tiny("llava")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoEffectWarning)
        _, report = Guard(model, None, [Against("noised")]).generate_with_report(**inputs, **SETTINGS)
    assert report.answer_start == inputs["input_ids"].shape[1]
