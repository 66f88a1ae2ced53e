"""At the first token the opposite of the image-free branch's likeliest answer is said; z is demoted elsewhere."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from against_twin import OF_STRATEGIES, check
from bundled import BundledContract
from contrast_formulas import without_image
from gold import SUPPRESSED
from lvlm_guard_controls import Contrarian
from lvlm_guard_controls.contrarian import PAIRS
from pieces import Pieces
from twin import Twin

from lvlm_guard import Guard, StrategyRefused
from lvlm_guard.testing import tiny
from lvlm_guard.testing.contract import Words
from lvlm_guard.testing.recompute import next_logits
from lvlm_guard.testing.tiny import inputs_for

ANSWERS = [[26, 44], [15, 33], [13, 31], [19], [20, 52], [21, 53]]
"""First letters of yes, no, left, right, above and below to the tests' tokenizer; a capital R is a space to it."""


def opposite_of(blind, mass):
    """The token that the rule says after image-free logits `[vocab]`, by hand; None where it says nothing."""
    chances = [float(blind.softmax(-1)[ids].sum()) for ids in ANSWERS]
    best = max(range(len(ANSWERS)), key=chances.__getitem__)
    other = best + 1 if best % 2 == 0 else best - 1
    if sum(chances) <= mass or chances[best] == chances[other]:
        return None
    return max(ANSWERS[other], key=lambda token: float(blind[token]))


def first_logits(guard, inputs):
    settings = {"max_new_tokens": 2, "do_sample": False, "suppress_tokens": SUPPRESSED}
    output = guard.generate(**inputs, **settings, return_dict_in_generate=True, output_logits=True)
    return output.sequences, output.logits


def test_the_answers_of_these_tests_are_those_of_the_words():
    spaced = Words()(" ")["input_ids"][0]
    first = [{Words()(word)["input_ids"][0] for word in words} - {spaced} for pair in PAIRS for words in pair]
    assert first == [set(ids) for ids in ANSWERS]


@pytest.mark.parametrize("architecture", OF_STRATEGIES)
def test_contrarian(architecture):
    said = []

    def gold(model, inputs, prefix):
        main = Twin(model).next(inputs, prefix)
        if prefix:
            return main, main
        others = torch.ones_like(main, dtype=torch.bool)
        others[opposite_of(next_logits(model, blind_inputs(inputs), []), 0.0)] = False
        said.append(int((~others).nonzero()))
        return torch.where(others, main - 1e4, main), main

    check([Contrarian(mass=0.0)], gold, architecture, power=-1.0)
    assert said


def blind_inputs(inputs):
    """The prompt without its image, by hand."""
    ids = [token for token in inputs["input_ids"][0].tolist() if token not in (100, 102, 103)]
    tensor = torch.tensor([ids])
    return {"input_ids": tensor, "attention_mask": torch.ones_like(tensor)}


@pytest.mark.filterwarnings("ignore:'contrarian' changed no logit")
def test_contrarian_says_the_opposite_only_where_the_branch_gives_answers_enough_mass():
    model, _ = tiny("llava")
    prompts = [inputs_for("llava", model, 1, text=text, seed=text) for text in (3, 6, 11)]
    blind = [next_logits(model, without_image(prompt), []) for prompt in prompts]
    masses = sorted(sum(float(one.softmax(-1)[ids].sum()) for ids in ANSWERS) for one in blind)
    between = (masses[0] + masses[1]) / 2
    for prompt, one in zip(prompts, blind, strict=True):
        sequences, logits = first_logits(Guard(model, Words(), [Contrarian(mass=between)]), prompt)
        wanted = opposite_of(one, between)
        plain = next_logits(model, prompt, [])
        token = int(sequences[0, prompt["input_ids"].shape[1]])
        if wanted is None:
            assert torch.allclose(logits[0][0], plain, atol=1e-4)
        else:
            assert token == wanted
            assert token != int(plain.argmax()), "no power"
    assert [opposite_of(one, between) is None for one in blind].count(True) == 1


@pytest.mark.filterwarnings("ignore:'contrarian' changed no logit")
def test_a_prompt_without_an_image_is_left_alone():
    model, inputs = tiny("llava")
    text = without_image(inputs)
    sequences, _ = first_logits(Guard(model, Words(), [Contrarian(mass=0.0)]), text)
    assert torch.equal(sequences, model.generate(**text, max_new_tokens=2, do_sample=False, suppress_tokens=SUPPRESSED))


def test_it_does_not_look_at_the_picture():
    model, inputs = tiny("llava")
    other = {**inputs, "pixel_values": torch.flip(inputs["pixel_values"], [-1]) * 0.5}
    answers = [first_logits(Guard(model, Words(), [Contrarian(mass=0.0)]), one)[0] for one in (inputs, other)]
    start = inputs["input_ids"].shape[1]
    assert torch.equal(answers[0][:, : start + 1], answers[1][:, : start + 1])


def test_a_pair_that_the_tokenizer_cannot_tell_apart_is_left_out_and_none_at_all_is_refused():
    model, inputs = tiny("llava")
    sequences, _ = first_logits(Guard(model, Pieces(yes=20, no=21), [Contrarian(mass=0.0)]), inputs)
    assert int(sequences[0, inputs["input_ids"].shape[1]]) in (20, 21)
    with pytest.raises(StrategyRefused, match="first tokens"):
        Guard(model, Pieces(), [Contrarian()]).generate(**inputs, max_new_tokens=1)


class TestContrarian(BundledContract):
    strategy: ClassVar = Contrarian(mass=0.0)  # random models put little on any answer
