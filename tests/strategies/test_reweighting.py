"""Attention re-weighting, each method against its formula run on the whole prompt at every step."""

import math
from itertools import chain

import pytest
import torch
from against_twin import ARCHITECTURES, check
from gold import OLD, by_hand
from lvlm_guard_contrastive import M3ID, VDD
from lvlm_guard_reweighting import ADHH, PAI, VAF
from lvlm_guard_reweighting.adhh import LLAVA_1_5_7B
from lvlm_guard_reweighting.adhh_fitter import fit_adhh
from lvlm_guard_reweighting.pai import NO_IMAGE
from PIL import Image
from pydantic import ValidationError
from toy_processor import toy_processor
from twin import Twin

from lvlm_guard import Artefact, Guard, InputError, Stack, StrategyRefused
from lvlm_guard.fitting import Demonstration, encode_answer, fit
from lvlm_guard.host.plugins import build
from lvlm_guard.strategy.artefacts import config_hash
from lvlm_guard.testing import StrategyContract, tiny

HEADS = ((0, 1), (0, 2), (1, 0), (2, 3))


class TestPAI(StrategyContract):
    strategy = PAI(alpha=1.0, gamma=2.0)


class TestVAF(StrategyContract):
    strategy = VAF(enhance=3.0, suppress=0.3, layers=(0, 3))


class TestADHH(StrategyContract):
    strategy = ADHH(tau=0.1, heads=tuple((layer, head) for layer in range(3) for head in range(4)))


def parts(twin, length):
    """Which positions lie before, in and after the image, and which rows predict."""
    index, image = torch.arange(length), twin.image.nonzero().flatten()
    return index < image[0], twin.image[:length], index > image[-1], index >= twin.prompt - 1


def attentive(model, inputs, prefix, alpha, layers=range(3)):
    def lifted(layer, scores):
        _, image, _, predicting = parts(twin, scores.shape[-1])
        here = image & predicting[:, None] & (layer in layers)
        return scores + alpha * scores.abs() * here

    twin = Twin(model, scores=lifted)
    return twin.next(inputs, prefix)


def plausible(combined, main):
    return torch.where(main >= main.max() + math.log(0.1), combined, main - 1e4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("alpha", "gamma"), [(1.0, 1.0), (0.0, 2.5), (1.0, 2.5)])
def test_pai(architecture, alpha, gamma):
    def gold(model, inputs, prefix):
        main = attentive(model, inputs, prefix, alpha)
        if gamma > 1:
            blind = Twin(model).next(by_hand("blind", inputs), prefix)
            wanted = blind.log_softmax(-1) + gamma * (main.log_softmax(-1) - blind.log_softmax(-1))
            shift = main.logsumexp(-1) + (gamma - 1) * (main.logsumexp(-1) - blind.logsumexp(-1))
            main = plausible(wanted + shift, main)  # the same distribution, at the height of logits
        return main, Twin(model).next(inputs, prefix)

    check([PAI(alpha=alpha, gamma=gamma)], gold, architecture)


def test_pai_leaves_the_first_layers_alone():
    def gold(model, inputs, prefix):
        return attentive(model, inputs, prefix, 2.0, layers=(2,)), Twin(model).next(inputs, prefix)

    check([PAI(alpha=2.0, gamma=1.0, layers=(2 / 3, 1.0))], gold, "llava")


def test_pai_shares_its_branch_with_the_other_image_free_strategies():
    model, inputs = tiny("llava")
    guard = Guard(model, None, [PAI(), M3ID(), VDD(blank="none")])
    guard.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert guard.report.forwards.prefill == 2
    assert guard.report.rows_per_forward == 2


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("enhance", "suppress"), [(3.0, 1.0), (1.0, 0.0), (3.0, 0.2)])
def test_vaf(architecture, enhance, suppress):
    def gold(model, inputs, prefix):
        def scaled(layer, scores):
            system, image, after, predicting = parts(twin, scores.shape[-1])
            factor = 1 + (enhance - 1) * image + (suppress - 1) * system
            rows = (after | predicting)[:, None] & (layer in (1, 2))
            return torch.where(rows, scores * factor, scores)

        twin = Twin(model, scores=scaled)
        return twin.next(inputs, prefix), Twin(model).next(inputs, prefix)

    check([VAF(enhance=enhance, suppress=suppress, layers=(1, 3))], gold, architecture, power=0.05 if OLD else 0.1)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
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
    Artefact(kind, {"heads": torch.tensor(heads)}, {"config": config_hash(model.config)}).save(path)
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


@pytest.mark.parametrize("wrong", [
    {"alpha": -0.1}, {"alpha": math.nan}, {"gamma": 0.5}, {"gamma": math.inf}, {"layers": (0.5,)},
    {"layers": (0.2, 1.5)}, {"layers": (-0.1, 1.0)},
])  # fmt: skip
def test_pai_refuses(wrong):
    with pytest.raises(ValidationError):
        build(PAI, wrong)


@pytest.mark.parametrize("wrong", [{"enhance": -1.0}, {"suppress": math.nan}, {"layers": "middle"}])
def test_vaf_refuses(wrong):
    with pytest.raises(ValidationError):
        build(VAF, wrong)


@pytest.mark.parametrize("wrong", [{"tau": 1.1}, {"tau": -0.1}, {"heads": ((1,),)}, {"heads": ((-1, 0),)}])
def test_adhh_refuses(wrong):
    with pytest.raises(ValidationError):
        build(ADHH, wrong)


@pytest.mark.parametrize(("strategy", "named"), [
    (PAI(layers=(2, 9)), "decoder of 3 layers"), (VAF(layers=(2, 1)), "decoder of 3 layers"),
    (ADHH(heads=((0, 4),)), "Head 4"), (ADHH(heads=LLAVA_1_5_7B), "decoder of 3 layers"),
])  # fmt: skip
def test_layers_and_heads_outside_the_model_are_named(strategy, named):
    model, inputs = tiny("llava")
    with pytest.raises(InputError, match=named):
        Guard(model, None, [strategy]).generate(**inputs, max_new_tokens=2)


@pytest.mark.parametrize("strategy", [PAI(gamma=1.0), VAF()])
def test_a_prompt_without_an_image_is_refused(strategy):
    model, inputs = tiny("llava")
    with pytest.raises(StrategyRefused, match="no image"):
        Guard(model, None, [strategy]).generate(**by_hand("blind", inputs), max_new_tokens=2)


def test_whole_layers_stay_whole_layers_in_a_stack_file(tmp_path):
    file = tmp_path / "stack.toml"
    file.write_text('[[stack]]\nname = "pai"\nparams = {layers = [0, 1]}\n')
    (read,) = Stack.of(file)
    assert read.layers == (0, 1)
    assert all(isinstance(one, int) for one in read.layers)


def test_the_published_list_is_whole():
    assert len(set(LLAVA_1_5_7B)) == 20
    assert max(max(pair) for pair in LLAVA_1_5_7B) < 32
    assert NO_IMAGE.key == ("no image",)
