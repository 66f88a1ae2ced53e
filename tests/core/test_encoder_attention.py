"""Attention edits in decoders that attend to what an encoder read: apart from their own positions, or with them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from versions import has_interface, specimen_of

from lvlm_guard import AttentionEdit, Branch, Contrast, Guard, GuardWarning, ModelRefused, hookimpl
from lvlm_guard.strategy.edits import AttentionCapture
from lvlm_guard.testing.zoo.prompts import PER_TOKEN

SETTINGS = {"max_new_tokens": 3, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
APART, WITH_OWN = "florence2", "t5gemma2"


@dataclass(frozen=True)
class Attends:
    name: ClassVar[str] = "attends"
    values: tuple[Any, ...]
    branch: Branch | None = None

    @hookimpl
    def attention(self, gen):
        return self.values

    @hookimpl
    def branches(self, gen):
        return [] if self.branch is None else [self.branch]

    @hookimpl
    def terms(self, gen):
        return [] if self.branch is None else [Contrast(self.branch.key, 1.0)]


@pytest.fixture(scope="module", params=[APART, WITH_OWN])
def specimen(request):
    return specimen_of(request.param)


def pad_right(rows):
    """One batch: positions of an encoder are counted from the left."""
    longest = max(row["input_ids"].shape[1] for row in rows)

    def fill(name, value):
        missing = longest - value.shape[1] if name in PER_TOKEN else 0
        return torch.nn.functional.pad(value, (0, missing)) if missing else value

    return {name: torch.cat([fill(name, row[name]) for row in rows]) for name in rows[0]}


def generate(specimen, inputs, *values, branch=None):
    model = specimen.model
    run = Guard(model, None, [Attends(values, branch)]).generate if values or branch else model.generate
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GuardWarning)
        return torch.stack(run(**inputs, **SETTINGS).logits)


def test_a_row_is_edited_as_it_is_alone_whatever_the_padding_of_what_the_encoder_read(specimen):
    rows = [specimen.row(text, seed) for text, seed in ((3, 1), (9, 2))]
    edit = AttentionEdit((0.0, 1.0), "add", 3.0)
    together = generate(specimen, pad_right(rows), edit)
    for number, row in enumerate(rows):
        alone, plain = generate(specimen, row, edit), generate(specimen, row)
        assert (alone - plain)[0].abs().max() > 0.05
        torch.testing.assert_close(together[0, number], alone[0, 0], rtol=1e-4, atol=1e-4)


def test_generated_keys_are_the_decoders_own(specimen):
    row = specimen.row()
    plain, masked = (
        generate(specimen, row, *edits) for edits in ((), (AttentionEdit((0.0, 1.0), "mask", keys="generated"),))
    )
    torch.testing.assert_close(masked[0], plain[0], rtol=1e-4, atol=1e-4)  # nothing was generated before the first one
    assert (masked[1] - plain[1]).abs().max() > 0.05


def test_keys_that_lie_in_both_places_are_refused_where_these_are_apart(specimen):
    edit = AttentionEdit((0.0, 1.0), "scale", 2.0, keys="all")
    if specimen.name == APART:
        with pytest.raises(ModelRefused, match="apart from each other"):
            generate(specimen, specimen.row(), edit)
    else:
        assert (generate(specimen, specimen.row(), edit) - generate(specimen, specimen.row()))[0].abs().max() > 0.05


def test_captures_see_the_image_in_what_the_encoder_read(specimen):
    seen = []

    def reduce(probabilities, view):
        assert view.keys.shape == (probabilities.shape[0], probabilities.shape[-1])
        seen.append((int(view.keys.sum()), probabilities.sum(-1)))
        return probabilities.sum(-1)

    row = specimen.row()
    generate(specimen, row, AttentionCapture("sum", (1, 3), reduce))
    assert {count for count, _ in seen} == {int((row["input_ids"] == 100).sum())}
    assert all(torch.allclose(total, torch.ones_like(total), atol=1e-5) for _, total in seen)


def test_a_branch_with_an_encoder_prompt_of_its_own_is_edited_alone(specimen):
    row, noisy = specimen.row(), Branch("noisy", pixels=lambda pixels, _: pixels + 1.0)
    plain = generate(specimen, row, branch=noisy)
    edit = AttentionEdit((0.0, 1.0), "add", 3.0, branch="noisy")
    main, edited = generate(specimen, row), generate(specimen, row, edit, branch=noisy)
    assert ((2 * main[0] - edited[0]) - (2 * main[0] - plain[0])).abs().max() > 0.02


def test_main_is_edited_beside_a_branch_whose_encoder_prompt_has_another_length(specimen):
    row, edit = specimen.row(), AttentionEdit((0.0, 1.0), "add", 3.0)
    ids = row["input_ids"][:, row["input_ids"][0] < 95]
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    blind = generate(specimen, text)
    edited, both = generate(specimen, row, edit), generate(specimen, row, edit, branch=Branch("blind", image="removed"))
    assert (edited[0] - generate(specimen, row)[0]).abs().max() > 0.05
    torch.testing.assert_close(both[0], 2 * edited[0] - blind[0], rtol=1e-3, atol=1e-3)


def test_an_encoder_that_reads_other_positions_than_the_prompts_is_refused():
    specimen = specimen_of("udop")
    none, others = "None of its layers runs attention", "read 24 positions, which are not those of the prompt"
    words = others if has_interface(specimen.model) else none
    with pytest.raises(ModelRefused, match=words):
        generate(specimen, specimen.row(), AttentionEdit((0.0, 1.0), "add", 3.0))
