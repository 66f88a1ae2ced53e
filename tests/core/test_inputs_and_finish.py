"""Main's own inputs edited, answers revised, and branches built from main's prefill, each against the same by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from against_twin import ARCHITECTURES, check
from gold import EXTRA, SUPPRESSED, Against, by_hand, disturbed
from PIL import Image
from toy_processor import toy_processor
from transformers import GenerationConfig

from lvlm_guard import (
    Branch,
    Contrast,
    Guard,
    InputEdit,
    Insert,
    ModeRefused,
    PluginRejected,
    ProcessorNeeded,
    Revision,
    StrategyRefused,
    hookimpl,
)
from lvlm_guard.testing import tiny
from lvlm_guard.testing.contract import Words, left_padded
from lvlm_guard.testing.recompute import next_logits
from lvlm_guard.testing.tiny import IMAGE_TOKEN, inputs_for

pytestmark = pytest.mark.filterwarnings("ignore:.*changed no logit.*")


@dataclass(frozen=True)
class Does:
    """A strategy put together from values."""

    name: ClassVar[str] = "does"
    edits: tuple[Any, ...] = ()
    splits: tuple[Any, ...] = ()
    ends: Callable[..., Any] | None = None

    @hookimpl
    def edit_inputs(self, gen):
        return self.edits

    @hookimpl
    def branches(self, gen):
        return self.splits

    @hookimpl
    def terms(self, gen):
        return [Contrast(branch.key, 1.5) for branch in self.splits]


@dataclass(frozen=True)
class Ends(Does):
    """The same with revisions."""

    name: ClassVar[str] = "ends"

    @hookimpl
    def finish(self, gen):
        return self.ends(gen) if self.ends else []


def inserted(inputs, ids, place="after_image"):
    """One unpadded prompt with tokens put in, written without the library."""
    old = inputs["input_ids"][0].tolist()
    image = [index for index, token in enumerate(old) if token in (IMAGE_TOKEN, 102, 103)]
    at = {"after_image": image[-1] + 1, "before_image": image[0], "end": len(old), "start": 0}[place]
    fresh = torch.tensor([[*old[:at], *ids, *old[at:]]])
    changed = {**inputs, "input_ids": fresh, "attention_mask": torch.ones_like(fresh)}
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in changed:
            changed[name] = (fresh == IMAGE_TOKEN).long()
    return changed


HANDS = {
    "tokens": (InputEdit(tokens=(Insert(EXTRA, "after_image"),)), lambda one: by_hand("longer", one)),
    "end": (InputEdit(tokens=(Insert(EXTRA, "end"),)), lambda one: inserted(one, EXTRA, "end")),
    "pixels": (InputEdit(pixels=disturbed), lambda one: by_hand("noised", one)),
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", HANDS)
def test_main_runs_on_the_edited_prompt(architecture, kind):
    edit, hand = HANDS[kind]

    def gold(model, inputs, prefix):
        return next_logits(model, hand(inputs), prefix), next_logits(model, inputs, prefix)

    check([Does((edit,))], gold, architecture)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_edits_follow_each_other_and_branches_start_from_the_edited_prompt(architecture):
    def gold(model, inputs, prefix):
        main = inserted(by_hand("noised", inputs), EXTRA)
        branch = inserted(main, (21, 22), "end")
        run = [next_logits(model, one, prefix) for one in (main, branch, inputs)]
        return 2.5 * run[0] - 1.5 * run[1], run[2]

    edits = (HANDS["pixels"][0], HANDS["tokens"][0])
    check([Does(edits, (Branch("asked on", tokens=(Insert((21, 22), "end"),)),))], gold, architecture)


def ragged(architecture):
    model, _ = tiny(architecture)
    singles = [inputs_for(architecture, model, 1, text=text, seed=text) for text in (3, 6, 11)]
    return model, singles, left_padded(singles)


def generate(model, inputs, *strategies, processor=None, **settings):
    guard = Guard(model, processor or Words(), list(strategies))
    base = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": SUPPRESSED}
    return guard.generate(**inputs, **(base | settings))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("mode", [{}, {"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2}])
@pytest.mark.parametrize("whole", [True, False])
def test_each_row_gets_its_own_tokens_and_the_users_prompt_back(architecture, mode, whole):
    model, singles, batch = ragged(architecture)
    texts = ((7, 9, 11, 12, 13), (), (21,))
    edit = InputEdit(tokens=(Insert(place="end", per_row=texts),))
    settings = {**mode, "return_dict_in_generate": whole}
    torch.manual_seed(0)
    output = generate(model, batch, Does((edit,)), **settings)
    rows = left_padded([inserted(one, ids, "end") for one, ids in zip(singles, texts, strict=True)])
    torch.manual_seed(0)
    hand = generate(model, rows, Does(), **settings)
    if whole:
        assert torch.equal(output["sequences"], output.sequences)
        assert output.past_key_values is not None
        output, hand = output.sequences, hand.sequences
    start, copies = batch["input_ids"].shape[1], mode.get("num_return_sequences", 1)
    assert torch.equal(output[:, :start], batch["input_ids"].repeat_interleave(copies, 0))
    assert torch.equal(output[:, start:], hand[:, rows["input_ids"].shape[1] :])
    assert not torch.equal(output, generate(model, batch, Does(), **settings | {"return_dict_in_generate": False}))


def test_total_lengths_count_from_the_users_prompt():
    model, _, batch = ragged("llava")
    edit, start = InputEdit(tokens=(Insert(EXTRA, "end"),)), batch["input_ids"].shape[1]
    wanted = generate(model, batch, Does((edit,)), max_new_tokens=6)
    assert torch.equal(generate(model, batch, Does((edit,)), max_new_tokens=None, max_length=start + 6), wanted)
    config = GenerationConfig(max_length=start + 6, do_sample=False, suppress_tokens=SUPPRESSED)
    got = Guard(model, Words(), [Does((edit,))]).generate(**batch, generation_config=config)
    assert torch.equal(got, wanted)
    assert config.max_length == start + 6


def test_rows_without_tokens_of_their_own_are_refused():
    model, _, batch = ragged("llava")
    with pytest.raises(StrategyRefused, match="for 2 rows, the batch has more"):
        generate(model, batch, Does((InputEdit(tokens=(Insert(per_row=((1,), (2,))),)),)))


def test_an_edit_of_the_image_needs_one():
    model, _ = tiny("llava")
    ids = torch.tensor([[5, 6, 7]])
    with pytest.raises(StrategyRefused, match="needs an image"):
        generate(
            model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, Does((InputEdit(pixels=disturbed),))
        )


def picture(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (30, 30, 3), dtype=np.uint8))


def test_an_edited_picture_is_what_main_and_later_branches_see():
    model, _ = tiny("llava")
    guard_processor = toy_processor()
    pictures, text = [picture(1), picture(2)], ["a <image> b c d", "a <image> b"]

    def upside(one, generator):
        return one.transpose(Image.Transpose.FLIP_TOP_BOTTOM)

    def mirrored(one, generator):
        return one.transpose(Image.Transpose.FLIP_LEFT_RIGHT)

    def run(edits, splits, shown):
        guard = Guard(model, guard_processor, [Does(edits, splits)])
        inputs = guard.inputs(images=shown, text=text)
        settings = {"max_new_tokens": 3, "do_sample": False, "suppress_tokens": SUPPRESSED}
        return guard.generate(**inputs, **settings, output_logits=True, return_dict_in_generate=True)

    edits, splits = (InputEdit(picture=upside),), (Branch("mirrored", picture=mirrored),)
    got, hand = run(edits, splits, pictures), run((), splits, [upside(one, None) for one in pictures])
    assert torch.allclose(torch.stack(got.logits), torch.stack(hand.logits), atol=1e-4)
    plain = run((), splits, pictures)
    assert float((got.logits[0] - plain.logits[0]).abs().max()) > 0.1


def second_thought(key):
    """A branch that reads main's most likely first token behind the image."""

    def build(gen):
        first = gen.logits()[:: gen.prompt.rows_per_request, -1].argmax(-1).tolist()
        return Branch(key, tokens=(Insert(per_row=tuple((token,) for token in first)),))

    return Branch(key, after_prefill=build)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_branch_from_mains_prefill(architecture):
    def gold(model, inputs, prefix):
        main = next_logits(model, inputs, prefix)
        first = next_logits(model, inputs, ())
        branch = next_logits(model, inserted(inputs, [int(first.argmax())]), prefix)
        return 2.5 * main - 1.5 * branch, main

    check([Does((), (second_thought("second"),))], gold, architecture)


def test_a_branch_from_the_prefill_joins_others_in_one_batch():
    model, _, batch = ragged("llava")
    strategy = Does((), (second_thought("second"), Branch("noised", pixels=disturbed)))
    tokens = {}
    for executor in ("batched", "sequential"):
        guard = Guard(model, Words(), [strategy], executor=executor)
        settings = {"max_new_tokens": 5, "do_sample": False, "suppress_tokens": SUPPRESSED}
        tokens[executor] = guard.generate(**batch, **settings)
        assert guard.report.executor == executor
        assert guard.report.rows_per_forward == (3 if executor == "batched" else 1)
    assert torch.equal(tokens["batched"], tokens["sequential"])


@pytest.mark.parametrize("made", [None, Branch("another", image="removed"), second_thought("second")])
def test_what_is_built_from_the_prefill_is_checked(made):
    model, inputs = tiny("llava")
    branch = Branch("second", after_prefill=lambda gen: made)
    with pytest.raises(PluginRejected, match="must return a Branch with the same key"):
        generate(model, inputs, Does((), (branch,)))
    assert "forward" not in vars(model)


def test_revisions_take_the_place_of_answers():
    model, _, batch = ragged("llava")
    plain = generate(model, batch, Ends())
    start, ids = batch["input_ids"].shape[1], {}

    def ends(gen):
        ids["seen"] = gen.output_ids.clone()
        return [Revision(0, "w9 w11 w12 w13 w14 w15"), Revision(2, "")]

    settings = {"eos_token_id": 59, "pad_token_id": 0}
    got = generate(model, batch, Ends(ends=ends), processor=toy_processor(), **settings)
    bare = w_ids("w9 w11 w12 w13 w14 w15")
    assert torch.equal(ids["seen"], plain[:, start:])
    assert torch.equal(got[:, :start], batch["input_ids"])
    assert got[0, start:].tolist() == [*bare, 59]
    assert got[1, start:].tolist() == [*plain[1, start:].tolist(), 0, 0, 0]
    assert got[2, start:].tolist() == [59, *[0] * 6]


def w_ids(text):
    return toy_processor().tokenizer(text, add_special_tokens=False)["input_ids"]


def test_without_an_end_token_revisions_just_stop():
    model, inputs = tiny("llava")
    got = generate(model, inputs, Ends(ends=lambda gen: [Revision(0, "w9")]), processor=toy_processor())
    assert got[0, inputs["input_ids"].shape[1] :].tolist() == w_ids("w9")


def test_nothing_to_revise_leaves_the_answer():
    model, _, batch = ragged("llava")
    assert torch.equal(generate(model, batch, Ends(ends=lambda gen: [])), generate(model, batch, Does()))


def test_an_edited_prompt_is_gone_before_answers_are_revised():
    model, _, batch = ragged("llava")
    edit = InputEdit(tokens=(Insert(EXTRA, "end"),))
    wanted = generate(model, batch, Does((edit,)))
    seen = []
    got = generate(model, batch, Ends((edit,), ends=lambda gen: seen.append(gen.output_ids)))
    assert torch.equal(got, wanted)
    assert torch.equal(seen[0], wanted[:, batch["input_ids"].shape[1] :])


REFUSED = {
    "streamed": {"streamer": type("Streamer", (), {"put": lambda self, _: None, "end": lambda self: None})()},
    "num_return_sequences": {"num_return_sequences": 2, "do_sample": True},
    "output_scores": {"output_scores": True},
    "output_logits": {"output_logits": True},
    "return_dict_in_generate": {"return_dict_in_generate": True},
}


@pytest.mark.parametrize("mode", REFUSED)
def test_modes_that_need_final_tokens_are_refused(mode):
    model, inputs = tiny("llava")
    with pytest.raises(ModeRefused, match=mode):
        generate(model, inputs, Ends(ends=lambda gen: [Revision(0, "w9")]), **REFUSED[mode])


def test_bad_revisions_are_refused():
    model, inputs = tiny("llava")
    with pytest.raises(PluginRejected, match="revises row 1, but there are 1"):
        generate(model, inputs, Ends(ends=lambda gen: [Revision(1, "w9")]))
    with pytest.raises(PluginRejected, match="must yield Revision"):
        generate(model, inputs, Ends(ends=lambda gen: ["w9"]))
    with pytest.raises(ProcessorNeeded, match="give the guard the processor"):
        Guard(model, None, [Ends(ends=lambda gen: [Revision(0, "w9")])]).generate(**inputs, max_new_tokens=2)


def test_the_guarded_model_can_be_asked_about_each_picture():
    model, _ = tiny("llava")
    asked = {}

    def ends(gen):
        asked["answers"] = [gen.ask(["a b c ?", "w9 w11 ?"], row) for row in (0, 1)]
        asked["none"] = gen.ask([], 0)
        return []

    guard = Guard(model, toy_processor(), [Against("noised"), Ends(ends=ends)])
    pictures = [picture(1), picture(2)]
    inputs = guard.inputs(images=pictures, text=["a <image> b c d", "a <image> b"])
    guard.generate(**inputs, max_new_tokens=3, do_sample=False)
    report = guard.report
    alone = Guard(model, toy_processor(), [Against("noised")])
    for row, shown in enumerate(pictures):
        for question, answer in zip(("a b c ?", "w9 w11 ?"), asked["answers"][row], strict=True):
            item = [{"type": "image", "image": shown}, {"type": "text", "text": question}]
            wanted = alone.chat([{"role": "user", "content": item}], max_new_tokens=16, do_sample=False)
            assert answer == wanted
    assert asked["none"] == []
    assert asked["answers"][0] != asked["answers"][1]
    assert report is guard.report
    with pytest.raises(ProcessorNeeded, match=r"guard\.inputs or guard\.chat"):
        Guard(model, toy_processor(), [Ends(ends=ends)]).generate(**dict(tiny("llava", 2)[1]), max_new_tokens=2)
