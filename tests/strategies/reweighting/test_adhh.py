"""In listed heads, probabilities of text keys become 0 where they sum to at least tau; nothing is renormalised."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from against_twin import OF_STRATEGIES, check
from bundled import BundledContract
from lvlm_guard_reweighting import ADHH
from lvlm_guard_reweighting.adhh import LLAVA_1_5_7B
from lvlm_guard_reweighting.adhh_fitter import _leave_out_joined, _leave_out_needed, fit_adhh
from lvlm_guard_reweighting.pai import NO_IMAGE
from PIL import Image
from pydantic import ValidationError
from toy_processor import toy_processor
from twin import Twin

from lvlm_guard import Artefact, FitRefused, Guard, InputError, StrategyRefused, testbed
from lvlm_guard.fitting import Demonstration, encode_answer, fit
from lvlm_guard.host.parameters import build
from lvlm_guard.strategy.artefacts import describe_model
from lvlm_guard.testbed.demonstrations import build_demonstrations
from lvlm_guard.testing import tiny

HEADS = ((0, 1), (0, 2), (1, 0), (2, 3))


class TestADHH(BundledContract):
    strategy = ADHH(tau=0.1, heads=tuple((layer, head) for layer in range(3) for head in range(4)))


def parts(twin, length):
    """Which positions lie before, in and after the image, and which rows predict."""
    index, image = torch.arange(length), twin.image.nonzero().flatten()
    return index < image[0], twin.image[:length], index > image[-1], index >= twin.prompt - 1


@pytest.mark.parametrize("architecture", OF_STRATEGIES)
@pytest.mark.parametrize("tau", [0.0, 0.4])
def test_adhh(architecture, tau):
    cut = []

    def gold(model, inputs, prefix):
        def deactivated(layer, probabilities):
            _, _, text, predicting = parts(twin, probabilities.shape[-1])
            mass = probabilities[..., text].sum(-1)
            for head in range(probabilities.shape[1]):
                if (layer, head) in HEADS:
                    rows = predicting & (mass[0, head] >= tau)
                    cut.append(float(rows[-1]))
                    probabilities = probabilities.clone()
                    probabilities[0, head] *= ~(rows[:, None] & text)
            return probabilities

        twin = Twin(model, probabilities=deactivated)
        return twin.next(inputs, prefix), Twin(model).next(inputs, prefix)

    check([ADHH(tau=tau, heads=HEADS)], gold, architecture)
    assert tau == 0 or 0 < sum(cut) < len(cut), "no power: every head or none is cut off"


def heads_file(model, path, heads=HEADS, kind="adhh"):
    Artefact(kind, {"heads": torch.tensor(heads)}, describe_model(model)).save(path)
    return path


def first_logits(model, inputs, strategy):
    output = Guard(model, None, [strategy]).generate(
        **inputs, max_new_tokens=1, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    return output.logits[0]


def test_adhh_takes_the_first_heads_of_its_artefact(tmp_path):
    model, inputs = tiny("qwen2_vl")
    file = heads_file(model, tmp_path / "heads.safetensors")
    got = first_logits(model, inputs, ADHH(tau=0.1, artefact=file, share=0.25))
    assert torch.equal(got, first_logits(model, inputs, ADHH(tau=0.1, heads=HEADS[:3])))
    one = first_logits(model, inputs, ADHH(tau=0.1, artefact=file))
    assert torch.equal(one, first_logits(model, inputs, ADHH(tau=0.1, heads=HEADS[:1])))
    assert not torch.equal(got, first_logits(model, inputs, ADHH(tau=0.1, artefact=file, share=1.0)))


def test_adhh_refuses_to_run_without_heads_or_with_those_of_another_model(tmp_path):
    model, inputs = tiny("qwen2_vl")
    other, _ = tiny("llava")
    with pytest.raises(StrategyRefused, match="fit adhh"):
        first_logits(model, inputs, ADHH())
    with pytest.raises(StrategyRefused, match=r"'adhh' needs an artefact of this model"):
        first_logits(model, inputs, ADHH(artefact=heads_file(other, tmp_path / "other.safetensors")))
    with pytest.raises(InputError, match=r"needs an artefact fitted for it: .* for 'vti'"):
        first_logits(model, inputs, ADHH(artefact=heads_file(model, tmp_path / "vti.safetensors", kind="vti")))


def demonstrations():
    pictures = [Image.linear_gradient("L").convert("RGB").rotate(angle) for angle in (0, 90, 200)]
    answers = [("a b c d", "a e c f"), ("b c a", "b c d e a"), ("f g h", "f x h")]
    return [Demonstration(picture, "a g", *both) for picture, both in zip(pictures, answers, strict=True)]


WORDS = [((1, 3), (1, 3)), ((2,), (2, 3)), ((1,), (1,))]
"""Positions of the real and of the hallucinated words."""


def test_the_finder_scores_heads_as_its_formula_says():
    model, _ = tiny("llava")
    processor = toy_processor()
    fitted = fit("adhh", model, processor, demonstrations(), split="made up")

    def spoken(demonstration, words, silenced):
        def silence(layer, outputs):
            if silenced is not None and layer == silenced[0]:
                outputs = outputs.clone()
                outputs[:, silenced[1], start - 1 :] = 0
            return outputs

        for answer, positions in zip((demonstration.correct, demonstration.hallucinated), words, strict=True):
            batch, length = encode_answer(model, processor, demonstration, answer)
            start, ids = batch["input_ids"].shape[1] - length, batch["input_ids"][0].tolist()
            prompt = {**batch, "input_ids": batch["input_ids"][:, :start]}
            prompt["attention_mask"] = batch["attention_mask"][:, :start]
            twin = Twin(model, outputs=silence)
            yield [
                float(twin.next(prompt, ids[start : start + at]).double().softmax(-1)[ids[start + at]])
                for at in positions
            ]

    def difference(silenced):
        said = [spoken(one, words, silenced) for one, words in zip(demonstrations(), WORDS, strict=True)]
        real, hallucinated = (list(chain(*words)) for words in zip(*said, strict=True))
        return sum(hallucinated) / len(hallucinated) - sum(real) / len(real)

    wanted = torch.tensor([[difference(None) - difference((layer, head)) for head in range(4)] for layer in range(3)])
    assert wanted.abs().max() > 1e-3
    assert torch.allclose(fitted.tensors["scores"].float(), wanted, atol=1e-6)
    assert fitted.tensors["heads"].tolist() == [
        [int(one) // 4, int(one) % 4] for one in wanted.flatten().argsort(descending=True) if wanted.flatten()[one] > 0
    ]
    assert (fitted.manifest["settings"]["real"], fitted.manifest["settings"]["hallucinated"]) == (4, 5)


@pytest.mark.slow
def test_the_finder_may_silence_few_heads_at_a_time():
    model, _ = tiny("llava")
    whole, parts = (
        fit_adhh(model, toy_processor(), demonstrations(), count=2, heads_per_batch=rows) for rows in (64, 5)
    )
    assert torch.allclose(whole.tensors["scores"], parts.tensors["scores"], atol=1e-6)
    assert whole.tensors["heads"].shape == (2, 2)


def test_the_finder_needs_answers_that_differ():
    model, _ = tiny("llava")
    same = [Demonstration(one.picture, one.prompt, "a b", "a b") for one in demonstrations()]
    with pytest.raises(InputError, match="differ"):
        fit("adhh", model, toy_processor(), same)


@pytest.mark.parametrize("wrong", [{"tau": 1.1}, {"tau": -0.1}, {"heads": ((1,),)}, {"heads": ((-1, 0),)}])
def test_adhh_refuses(wrong):
    with pytest.raises(ValidationError):
        build(ADHH, wrong)


def test_the_published_list_is_whole():
    assert len(set(LLAVA_1_5_7B)) == 20
    assert max(max(pair) for pair in LLAVA_1_5_7B) < 32
    assert NO_IMAGE.key == ("no image",)


def test_heads_without_which_correct_answers_break_are_left_out():
    changes = torch.zeros(3, 40)
    changes[0, :12] = -1  # needed
    changes[1, :6], changes[1, 6:11] = -1, 1  # noise
    kept = _leave_out_needed(torch.tensor([0, 2, 1]), changes, HEADS)
    assert kept.tolist() == [2, 1]
    with pytest.raises(FitRefused, match=r"without \(0, 1\) 12 of 40 words"):
        _leave_out_needed(torch.tensor([0]), changes, HEADS)


def test_the_list_ends_where_its_heads_together_break_correct_answers():
    changes = torch.zeros(3, 40)
    changes[1:, :12] = -1
    assert _leave_out_joined(torch.tensor([7, 4, 5]), changes).tolist() == [7]


@pytest.mark.slow
def test_the_finder_refuses_the_heads_that_the_bundled_model_sees_with():
    model, processor = testbed.load()
    settings = fit_adhh(model, processor, build_demonstrations(8)).settings
    assert settings["refused"] > 0
    assert settings["count"] > 0
