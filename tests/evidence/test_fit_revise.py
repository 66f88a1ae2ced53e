"""Weights and thresholds of revise: the fewest inventions at a recall that hardly falls where habits are kept and where they are broken."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from lvlm_guard_augmentation.revise import Revise
from lvlm_guard_augmentation.revise_fitter import fit_revise
from lvlm_guard_augmentation.scoring import NEVER, LevelRule
from lvlm_guard_augmentation.thresholds import (
    ClaimExample,
    choose_object_thresholds,
    choose_value_thresholds,
    fit_weights,
)
from lvlm_guard_augmentation.true_pictures import PictureHabits, TruePicture, read_truth
from PIL import Image

from lvlm_guard import Artefact, Guard, InputError, loading
from lvlm_guard.fitting import Demonstration, LabelledPictures, fit
from lvlm_guard.host.fitters import fitter_catalogue
from lvlm_guard.testbed.labelled import label_scenes
from lvlm_guard.testing import TinyProcessor, tiny

ONLY_MARGIN = (0.0, 0.0, 1.0, 0.0)


def example(margin, true, *, said=True, breaks=False, evidence=None, picture=0, group=""):
    return ClaimExample(picture, said, margin, evidence, true, breaks, group)


def many(count, *args, **kwargs):
    return [example(*args, **kwargs) for _ in range(count)]


def test_weights_follow_the_truth():
    examples = [example(m / 4, m > 2, said=m % 2 == 0, evidence=-m / 8) for m in range(-20, 21)]
    examples += [example(0.0, True, said=True), example(0.0, False, said=False)]
    constant, said, margin, evidence = fit_weights(examples, with_evidence=False)
    assert margin > 0.5
    assert evidence == 0.0
    assert constant + margin * 4 > 0 > constant + margin * -4 + said
    only_evidence = [example(0.0, e > 0, evidence=float(e)) for e in range(-20, 21)]
    *_, margin, evidence = fit_weights(only_evidence, with_evidence=True)
    assert abs(margin) < 0.01 < 0.5 < evidence


def test_inventions_go_as_far_as_both_recalls_allow():
    """True objects that break habits lean to no as inventions do: one threshold for both halves would lose them."""
    habitual = many(90, 4.0, True)
    breaking = many(5, -1.0, True, breaks=True) + many(5, 3.0, True, breaks=True)
    invented = many(20, -2.0, False) + many(20, -0.5, False)
    rule, outcome = choose_object_thresholds(habitual + breaking + invented, ONLY_MARGIN, (100, 10), 0.01)
    assert -2.0 < rule.keep < -1.0
    assert (outcome.wrong_before, outcome.wrong) == (40, 20)
    assert outcome.right == outcome.right_before == (90, 10)
    assert rule.add == NEVER
    lax, more = choose_object_thresholds(habitual + breaking + invented, ONLY_MARGIN, (100, 10), 0.5)
    assert -0.5 < lax.keep < 3.0  # a recall that may fall lets all inventions go
    assert (more.wrong, more.right) == (0, (90, 5))


def test_what_is_added_pays_for_what_is_dropped():
    said = many(80, 4.0, True) + many(10, -1.0, True) + many(10, 2.0, True, breaks=True) + many(30, -0.5, False)
    unsaid = many(10, 6.0, True, said=False) + many(5, 5.0, False, said=False) + many(50, -3.0, False, said=False)
    rule, outcome = choose_object_thresholds(said + unsaid, ONLY_MARGIN, (100, 10), 0.0)
    assert -0.5 < rule.keep < 2.0
    assert 5.0 < rule.add < 6.0
    assert (outcome.wrong, outcome.right) == (0, (90, 10))


def test_values_are_replaced_where_that_is_right():
    examples = []
    for picture in range(20):  # the wrong colour is denied and the true one affirmed
        examples += [
            example(-2.0, False, picture=picture, group="mug"),
            example(3.0, True, said=False, picture=picture, group="mug"),
        ]
    for picture in range(20, 30):  # here nothing is affirmed
        examples += [
            example(-2.0, False, picture=picture, group="mug"),
            example(0.5, False, said=False, picture=picture, group="mug"),
        ]
    examples += [example(2.0, True, picture=picture, group="mug") for picture in range(30, 60)]
    rule, outcome = choose_value_thresholds(examples, ONLY_MARGIN, 0.0)
    assert -2.0 < rule.keep < 2.0
    assert 0.5 < rule.add < 3.0
    assert (outcome.wrong_before, outcome.wrong, outcome.right) == (30, 0, (50, 0))


def show(objects):
    return TruePicture(None, "", {name: frozenset({value} - {""}) for name, value in objects.items()})


def test_habits_are_what_goes_together():
    usual = [show({"mug": "red", "spoon": "", "pan": ""})] * 4 + [show({"mug": "red", "spoon": ""})] * 4
    odd = show({"mug": "blue"})
    habits = PictureHabits.of([*usual, odd])
    assert habits.partners["mug"] == "spoon"
    assert habits.is_broken_by(odd)
    assert not habits.is_broken_by(usual[-1])
    assert habits.is_untypical(odd, "mug")
    assert not habits.is_untypical(usual[0], "mug")


def test_the_truth_of_captions_and_of_labels():
    demonstration = Demonstration(None, "what is here", "there is a red mug , an egg and a pan .", "x")
    (of_caption,) = read_truth([demonstration], ("red",))
    assert of_caption.objects == {"mug": frozenset({"red"}), "egg": frozenset(), "pan": frozenset()}
    labelled = SimpleNamespace(picture="p", objects=(SimpleNamespace(name="Mug", attributes=("Red",)),))
    unlabelled = SimpleNamespace(picture="q", objects=None)
    data = SimpleNamespace(pictures=[unlabelled], calibration=[labelled, unlabelled])
    (of_labels,) = read_truth(data, ())
    assert of_labels.objects == {"mug": frozenset({"red"})}
    with pytest.raises(InputError, match="pictures whose objects are known"):
        read_truth([Demonstration(None, "", "nothing", "x")], ())


def test_nothing_invented_is_nothing_to_fit():
    model, _ = tiny("llava")
    picture = Image.new("RGB", (32, 32), (9, 90, 200))
    demonstrations = [Demonstration(picture, "w9", "a mug and a pan .", "x")] * 2
    with pytest.raises(InputError, match="captions with inventions"):
        fit_revise(model, TinyProcessor("llava"), demonstrations, tokens=4)


def test_it_is_offered():
    assert fitter_catalogue().find("revise").fit is fit_revise


@pytest.mark.slow
def test_a_fit_on_the_bundled_model(tmp_path):
    model, processor = loading.load("testbed", None, "float32")
    pictures = label_scenes("calibration", 24, 5)
    artefact = fit("revise", model, processor, LabelledPictures(pictures))
    facts = artefact.manifest["settings"]["calibration"]["object"]
    assert facts["wrong"] <= facts["wrong_before"]
    assert all(
        after >= before - 0.01 * of
        for after, before, of in zip(facts["right"], facts["right_before"], facts["of"], strict=True)
    )
    artefact.save(tmp_path / "rules.safetensors")
    guard = Guard(model, processor, [Revise(artefact=tmp_path / "rules.safetensors")])
    guard.chat([{"role": "user", "content": [{"type": "image", "image": pictures[0].picture}, {"type": "text", "text": "describe this image ."}]}], max_new_tokens=44)  # fmt: skip
    loaded = Artefact.load(tmp_path / "rules.safetensors", "revise", model)
    keep = loaded["thresholds"][0, 0].item()
    weights = tuple(loaded["weights"][0].tolist())
    for record in guard.report.results["revise"][0]:
        if record["decision"] in ("kept", "dropped"):
            score = LevelRule(weights).score(record["margin"], None, is_said=True)
            assert record["score"] == pytest.approx(score, abs=1e-4)
            assert (record["decision"] == "kept") == (score >= keep)
