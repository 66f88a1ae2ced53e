"""Controls do the plain thing they are named for."""

import math
import statistics
import warnings
from dataclasses import replace

import pytest
import torch
from against_twin import ARCHITECTURES, check
from gold import SUPPRESSED
from lvlm_guard_contrastive import VCD
from lvlm_guard_controls import OLM, PBA, MaskOnly, Temperature, YesBias
from twin import Twin

from lvlm_guard import Guard, NoEffectWarning, ProcessorNeeded, StackError, StrategyRefused
from lvlm_guard.testing import StrategyContract, tiny
from lvlm_guard.testing.contract import Words, left_padded
from lvlm_guard.testing.tiny import inputs_for

YES, NO = [26, 44], [15, 33]  # "yes", "Yes", "no", "No" to the tests' tokenizer; " yes" and " no" begin alike


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_mask_only(architecture):
    demoted = []

    def gold(model, inputs, prefix):
        main = Twin(model).next(inputs, prefix)
        keep = main >= main.max() + math.log(0.3)
        demoted.append(int((~keep).sum()))
        return torch.where(keep, main, main - 1e4), main

    check([MaskOnly(beta=0.3)], gold, architecture, power=-1.0)
    assert min(demoted) > 50


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_temperature(architecture, beta):
    def gold(model, inputs, prefix):
        main = Twin(model).next(inputs, prefix)
        return torch.where(main.softmax(-1) >= beta * main.softmax(-1).max(), 2.5 * main, main - 1e4), main

    check([Temperature(alpha=1.5, beta=beta)], gold, architecture)


def test_temperature_is_a_contrast_with_a_branch_that_says_nothing():
    model, inputs = tiny("llava")
    settings = {"max_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    plain = model.generate(**inputs, **settings)
    guarded = Guard(model, None, [Temperature(alpha=1.0)]).generate(**inputs, **settings)
    assert torch.equal(plain.sequences, guarded.sequences)
    assert torch.allclose(torch.stack(guarded.logits), 2 * torch.stack(plain.logits))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("strength", [1.5, -2.0])
def test_yes_bias(architecture, strength):
    def gold(model, inputs, prefix):
        main = Twin(model).next(inputs, prefix)
        pushed = main.clone()
        if not prefix:
            pushed[YES] += strength
            pushed[NO] -= strength
        return pushed, main

    check([YesBias(strength)], gold, architecture)


LETTERS = {"yes": tuple("abcdefghijklm"), "no": tuple("nopqrstuvwxyz")}


def chances(main, words):
    begun = sorted({5 + ord(word[0]) % 50 for word in words})
    return float(main.softmax(-1)[begun].sum()), max(begun, key=lambda token: float(main[token]))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("doubted", ["all", "by gap", "by mass"])
def test_olm(architecture, doubted):
    model, _ = tiny(architecture)
    prompts = [Twin(model).next(inputs_for(architecture, model, 1, text=text, seed=text)) for text in (3, 6, 11)]
    yes, no = ([chances(main, LETTERS[name])[0] for main in prompts] for name in ("yes", "no"))
    gap = {"by gap": between(abs(a - b) for a, b in zip(yes, no, strict=True))}.get(doubted, 1.0)
    mass = {"by mass": between(a + b for a, b in zip(yes, no, strict=True))}.get(doubted, 0.0)
    said = {}

    def gold(model, inputs, prefix):
        main = Twin(model).next(inputs, prefix)
        for_yes, best = chances(main, LETTERS["yes"])
        for_no, _ = chances(main, LETTERS["no"])
        hesitates = for_yes + for_no > mass and abs(for_yes - for_no) < gap
        if prefix:
            return main, main
        said[inputs["input_ids"].shape[1]] = hesitates
        others = torch.arange(len(main)) != best
        return torch.where(others, main - 1e4, main) if hesitates else main, main

    check([OLM(gap=gap, mass=mass, **LETTERS)], gold, architecture, power=-1.0)
    assert sum(said.values()) in ({3} if doubted == "all" else {1, 2}), "each side of the rule is seen"


def between(values):
    """A bound that some of the three values keep and some do not."""
    ordered = sorted(values)
    return statistics.mean(ordered[1:] if ordered[2] - ordered[1] > ordered[1] - ordered[0] else ordered[:2])


@pytest.mark.parametrize("sampled", [False, True])
def test_olm_says_yes(sampled):
    model, inputs = tiny("llava")
    torch.manual_seed(0)
    guard = Guard(model, Words(), [OLM(gap=1.0, mass=0.0)])
    sequences = guard.generate(**inputs, max_new_tokens=2, do_sample=sampled, suppress_tokens=SUPPRESSED)
    assert int(sequences[0, inputs["input_ids"].shape[1]]) in YES


def hinted(inputs, hint, place):
    """One prompt with the hint in it, by hand."""
    ids = inputs["input_ids"][0].tolist()
    last = max(index for index, token in enumerate(ids) if token in (100, 103))
    at = last + 1 if place == "after_image" else len(ids)
    changed = {**inputs, "input_ids": torch.tensor([ids[:at] + hint + ids[at:]])}
    changed["attention_mask"] = torch.ones_like(changed["input_ids"])
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in inputs:
            changed[name] = (changed["input_ids"] == 100).long()
    return changed


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("place", ["after_image", "end"])
@pytest.mark.parametrize("mode", [{}, {"num_beams": 3}])
def test_pba_is_generate_on_the_longer_prompt(architecture, place, mode):
    model, _ = tiny(architecture)
    singles = [inputs_for(architecture, model, 1, text=text, seed=text) for text in (3, 6, 11)]
    longer = left_padded([hinted(one, Words()("say yes")["input_ids"], place) for one in singles])
    batch = left_padded(singles)
    settings = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": SUPPRESSED, **mode}
    raw = {"return_dict_in_generate": True, "output_logits": True}
    wanted, plain = (model.generate(**one, **settings, **raw) for one in (longer, batch))
    got = Guard(model, Words(), [PBA(hint="say yes", place=place)]).generate(**batch, **settings, **raw)
    start = batch["input_ids"].shape[1]
    assert torch.equal(got.sequences[:, :start], batch["input_ids"])
    assert torch.equal(got.sequences[:, start:], wanted.sequences[:, longer["input_ids"].shape[1] :])
    assert float((got.logits[0] - wanted.logits[0]).abs().max()) <= 1e-5
    assert float((got.logits[0] - plain.logits[0]).abs().max()) > 0.1


class Pieces:
    """A tokenizer that spells a leading space, as some do."""

    unk_token_id = 3

    def __init__(self, **ids):
        self.ids = ids

    def __call__(self, text, **_):
        space = [9] if text.startswith(" ") else []
        return {"input_ids": [*space, self.ids.get(text.strip(), self.unk_token_id)]}


def bias_of(tokenizer, strategy):
    model, inputs = tiny("llava")
    settings = {"max_new_tokens": 1, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    plain = model.generate(**inputs, **settings)
    change = Guard(model, tokenizer, [strategy]).generate(**inputs, **settings).logits[0] - plain.logits[0]
    return {token: round(float(change[0, token]), 3) for token in change[0].nonzero().flatten().tolist()}


def test_tokens_that_begin_both_answers_or_are_unknown_are_left_alone():
    assert bias_of(Pieces(yes=20, no=21, Yes=22), YesBias(2.0)) == {20: 2.0, 21: -2.0, 22: 2.0}


@pytest.mark.parametrize("strategy", [YesBias(), OLM()])
def test_answers_that_begin_alike_are_refused(strategy):
    model, inputs = tiny("llava")
    with pytest.raises(StrategyRefused, match="first tokens"):
        Guard(model, Pieces(), [strategy]).generate(**inputs, max_new_tokens=1)
    with pytest.raises(StrategyRefused, match="first tokens"):
        Guard(model, Words(), [replace(strategy, no=("yellow",), yes=("yes",))]).generate(**inputs, max_new_tokens=1)


@pytest.mark.parametrize("strategy", [YesBias(), OLM(), PBA()])
def test_words_need_a_tokenizer(strategy):
    model, inputs = tiny("llava")
    with pytest.raises(ProcessorNeeded, match="processor"):
        Guard(model, None, [strategy]).generate(**inputs, max_new_tokens=1)


def test_no_hint_and_no_tokenizer_is_plain_generate():
    model, inputs = tiny("llava")
    settings = {"max_new_tokens": 3, "do_sample": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoEffectWarning)
        neutral = [PBA(hint=""), YesBias(0.0), OLM(gap=0.0), MaskOnly(0.0), Temperature(0.0)]
        guarded = Guard(model, None, neutral).generate(**inputs, **settings)
    assert torch.equal(guarded, model.generate(**inputs, **settings))


@pytest.mark.parametrize("make", [
    lambda: MaskOnly(1.1), lambda: Temperature(-1.0), lambda: YesBias(math.inf), lambda: YesBias(yes=()),
    lambda: OLM(gap=2.0), lambda: OLM(mass=-0.1), lambda: PBA(place="before_image"),
])  # fmt: skip
def test_settings_out_of_range_are_named(make):
    model, _ = tiny("llava")
    with pytest.raises(StackError, match=r"(beta|alpha|strength|yes|gap|mass|place).*: "):
        Guard(model, None, [make()])


def test_the_families_say_that_they_are_controls():
    assert {one.family for one in (MaskOnly, Temperature, YesBias, OLM, PBA)} == {"control"}
    assert VCD.family != "control"


class TestMaskOnly(StrategyContract):
    strategy = MaskOnly()
    architectures = ("llava",)  # nothing of it depends on the model


class TestTemperature(StrategyContract):
    strategy = Temperature()
    architectures = ("llava",)


class TestYesBias(StrategyContract):
    strategy = YesBias()


class TestOLM(StrategyContract):
    strategy = OLM(gap=1.0, mass=0.0)  # random models put little on either answer


class TestPBA(StrategyContract):
    strategy = PBA()
    test_near_neutral_is_near_plain = None  # a hint is there or is not

    def _at(self, share):
        return PBA(hint="")
