"""Heads, log-odds and mixing weights on made-up tokens and answers, where it is known what must come out."""

from __future__ import annotations

import pytest
import torch
from lvlm_guard_evidence.answers import find_options
from lvlm_guard_evidence.calibration import describe_loss, fit_bias, fit_mixing, fit_scales
from lvlm_guard_evidence.claims import Claim
from lvlm_guard_evidence.examples import check_labels, read_labels, weigh_presence, weigh_values
from lvlm_guard_evidence.head import EvidenceHead
from lvlm_guard_evidence.head_fitting import fit_weights, stack_tokens
from lvlm_guard_evidence.lens import read_norm
from lvlm_guard_evidence.mixing import Mixing
from lvlm_guard_evidence.names import NamesTable, plural
from lvlm_guard_evidence.patch_evidence_fitter import TokenSet, fit_patch_evidence, fit_peaks
from lvlm_guard_evidence.questions import CalibrationQuestion, ask_questions
from lvlm_guard_evidence.regression import fit_binary
from lvlm_guard_evidence.weighing import CalibrationCase
from PIL import Image
from torch import nn

from lvlm_guard import FitRefused, InputError
from lvlm_guard.fitting import LabelledObject, LabelledPicture, LabelledPictures, fit

NAMES, VALUES = ("mug", "spoon", "egg", "pan"), ("red", "green", "blue")
SIDE, WIDE = 4, 24
SIZE = (64, 64)
DRAW = torch.Generator().manual_seed(3)
LOOKS = torch.randn(len(NAMES) + len(VALUES), WIDE, generator=DRAW)
PLACES = torch.tensor([[(row + 0.5) / SIDE, (column + 0.5) / SIDE] for row in range(SIDE) for column in range(SIDE)])


def draw_pictures(count, seed):
    """Pictures whose tokens are the looks of what stands in a cell, and noise."""
    draw = torch.Generator().manual_seed(seed)
    pictures, tokens = [], []
    for _ in range(count):
        grid = torch.randn(SIDE * SIDE, WIDE, generator=draw) * 0.6
        shown = torch.rand(len(NAMES), generator=draw) < 0.5
        cells = torch.randperm(SIDE * SIDE, generator=draw)
        things = []
        for index, cell in zip(shown.nonzero().flatten().tolist(), cells.tolist(), strict=False):
            value = int(torch.randint(len(VALUES), (1,), generator=draw))
            grid[cell] += LOOKS[index] + LOOKS[len(NAMES) + value]
            row, column = divmod(cell, SIDE)
            box = tuple(16.0 * side for side in (column, row, column + 1, row + 1))
            things.append(LabelledObject(NAMES[index], box, (VALUES[value],)))
        pictures.append(LabelledPicture(Image.new("RGB", SIZE), tuple(things)))
        tokens.append(grid)
    return pictures, tokens


def see(count, seed, pictures=None):
    drawn, tokens = draw_pictures(count, seed)
    labelled = drawn if pictures is None else pictures
    labels = read_labels(labelled, [SIZE] * count, NamesTable(NAMES), VALUES)
    return TokenSet(drawn, stack_tokens(tokens, [PLACES] * count), labels)


def fit_head(seen):
    weights = fit_weights(seen.recorded, seen.labels, steps=300)
    return EvidenceHead(weights.weight, weights.bias, seen.labels.table, VALUES)


@pytest.fixture(scope="module")
def head():
    return fit_head(see(400, 1))


@pytest.fixture(scope="module")
def judging():
    return see(200, 2)


def test_a_head_finds_objects_values_places_and_numbers(head, judging):
    fitted = fit_scales(head, judging.read(head), judging.labels)
    right = {"object": [], "attribute": [], "relation": []}
    for picture, evidence in zip(judging.pictures, judging.read(fitted), strict=True):
        shown = {thing.name: thing for thing in picture.objects}
        right["object"] += [(evidence.existence(name) > 0) == (name in shown) for name in NAMES]
        for thing in shown.values():
            odds = evidence.attributes(thing.name)
            right["attribute"].append(max(odds, key=odds.get) == thing.attributes[0])
            for other in shown.values():
                if thing.box[0] < other.box[0]:
                    right["relation"].append(evidence.relation(thing.name, "left", other.name) > 0)
    assert {level: sum(each) / len(each) > 0.9 for level, each in right.items()} == dict.fromkeys(right, True)
    assert all(scale.slope > 0 for scale in fitted.scales.values())
    peaks = fit_peaks(head, judging)
    counted = EvidenceHead(head.weight, head.bias, head.table, VALUES, peaks)
    numbers = [evidence.number("mug") for evidence in judging.read(counted)]
    truth = judging.labels.counts[:, 0].tolist()
    assert sum(a == b for a, b in zip(numbers, truth, strict=True)) > 0.85 * len(truth)


def test_a_head_of_shuffled_labels_is_worth_nothing(judging):
    drawn, _ = draw_pictures(400, 1)
    seen = see(400, 1, [*drawn[57:], *drawn[:57]])
    shuffled = fit_head(seen)
    cases = build(shuffled, judging, wrong=0.2)
    with pytest.raises(FitRefused, match="needs evidence that helps some kind of question"):
        fit_mixing(cases)


def build(head, judging, wrong):
    """Yes/no questions to a model that answers by habit, wrongly in a share of the cases."""
    scaled = fit_scales(head, judging.read(head), judging.labels)
    draw = torch.Generator().manual_seed(11)
    cases = []
    for number, evidence in enumerate(judging.read(scaled)):
        for index, name in enumerate(NAMES):
            there = bool(judging.labels.present[number, index])
            is_habitual = float(torch.rand(1, generator=draw)) > wrong
            says_yes = there == is_habitual
            margin = (1.0 if says_yes else -1.0) + 0.3 * float(torch.randn(1, generator=draw))
            question = CalibrationQuestion(number, Claim("object", name), ("yes", "no"), int(not there), is_habitual)
            odds = evidence.existence(name)
            cases.append(
                CalibrationCase(question, torch.tensor([margin / 2, -margin / 2]), torch.tensor([odds / 2, -odds / 2]))
            )
    return cases


def accuracy(cases, mixing, half):
    of_half = [case for case in cases if case.half == half]
    right = [
        int((case.margins + mixing.mix(case.margins, case.odds)).argmax()) == case.question.truth for case in of_half
    ]
    return sum(right) / len(right)


def test_mixing_weights_win_back_what_habit_loses_and_keep_the_rest(head, judging):
    cases = build(head, judging, wrong=0.3)
    mixing, found = fit_mixing(cases)
    weights, bias = mixing["existence"], fit_bias(cases)["existence"]
    assert weights.evidence > 0
    assert bias.evidence == 0
    assert accuracy(cases, Mixing(), "habit_breaking") < 0.1 < 0.85 < accuracy(cases, weights, "habit_breaking")
    assert accuracy(cases, weights, "habit_true") > 0.85
    assert found["existence"]["with_evidence"]["habit_breaking"] > 0.8


def test_evidence_that_breaks_answers_is_left_out():
    """Evidence that is right where habit is broken and wrong where it is kept, as a contrarian's is."""
    cases = []
    for number in range(200):
        is_habitual, truth = number % 10 > 0, number % 2
        sign = 1 - 2 * truth
        margin = torch.tensor([0.1, -0.1]) * (sign if is_habitual else -sign)
        odds = torch.tensor([2.0, -2.0]) * (-sign if is_habitual else sign)
        cases.append(
            CalibrationCase(
                CalibrationQuestion(number, Claim("object", "mug"), ("yes", "no"), truth, is_habitual), margin, odds
            )
        )
    with pytest.raises(FitRefused, match="existence: "):
        fit_mixing(cases)


def test_a_loss_within_noise_is_none():
    assert describe_loss([(True, True)] * 90 + [(True, False)] * 3) == ""
    assert describe_loss([(True, False)] * 5 + [(False, True)] * 4) == ""
    assert (
        describe_loss([(True, True)] * 90 + [(True, False)] * 10) == "fall from 1.000 to 0.900 of 100 (10 lost, 0 won)"
    )


def test_a_regression_finds_its_coefficients():
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(4000, 2, generator=draw)
    odds = features @ torch.tensor([2.0, -1.0]) + 0.5
    truth = (torch.rand(4000, generator=draw) < odds.sigmoid()).float()
    assert fit_binary(features, truth, torch.ones(4000)).tolist() == pytest.approx([2.0, -1.0, 0.5], abs=0.2)


def test_weights_break_company_and_habits():
    present = torch.tensor([[1.0, 1.0]] * 90 + [[1.0, 0.0]] * 10 + [[0.0, 1.0]] * 10 + [[0.0, 0.0]] * 90)
    weights = weigh_presence(present)[:, 0]
    alone, together = weights[90:100].sum(), weights[:90].sum()
    assert float(together / alone) == pytest.approx(1.0, rel=0.01)
    described = torch.full((100, 1, 2), torch.nan)
    described[:80, 0] = torch.tensor([1.0, 0.0])
    described[80:, 0] = torch.tensor([0.0, 1.0])
    shares = weigh_values(described)[:, 0]
    assert float(shares[:80].sum() / shares[80:].sum()) == pytest.approx(1.0, rel=0.01)


def test_questions_are_true_and_know_their_habit():
    pictures, _ = draw_pictures(60, 4)
    questions = ask_questions(pictures, [SIZE] * 60, NamesTable(NAMES), VALUES)
    assert {question.kind for question in questions} == {
        "existence", "is_attribute", "which_attribute", "is_side", "which_side", "is_height", "which_height",
    }  # fmt: skip
    for question in questions:
        shown = {thing.name: thing for thing in pictures[question.picture].objects}
        claim, answer = question.claim, question.options[question.truth]
        if question.kind == "existence":
            assert (answer == "yes") == (claim.subject in shown)
        if question.kind == "which_attribute":
            assert answer == shown[claim.subject].attributes[0]
        if question.kind == "which_side":
            assert (answer == "left") == (shown[claim.subject].box[0] < shown[claim.reference].box[0])
        if question.kind == "which_height":
            assert (answer == "above") == (shown[claim.subject].box[1] < shown[claim.reference].box[1])
        if question.kind in ("is_side", "is_height"):
            axis, before = (0, "left") if question.kind == "is_side" else (1, "above")
            is_before = shown[claim.subject].box[axis] < shown[claim.reference].box[axis]
            assert (answer == "yes") == (is_before == (claim.direction == before))
    assert questions == ask_questions(pictures, [SIZE] * 60, NamesTable(NAMES), VALUES)


def test_habits_are_read_off_the_labels():
    """Mugs are red and stand left of spoons and above them, but for two pictures."""

    def picture(value, left):
        boxes = [(0.0, 0.0, 16.0, 16.0), (40.0, 40.0, 56.0, 56.0)][:: 1 if left else -1]
        return LabelledPicture(
            Image.new("RGB", SIZE), (LabelledObject("mug", boxes[0], (value,)), LabelledObject("spoon", boxes[1]))
        )

    pictures = [picture("red", left=True)] * 12 + [picture("blue", left=False)] * 2
    questions = ask_questions(pictures, [SIZE] * 14, NamesTable(NAMES), VALUES)
    habits = {
        (question.picture >= 12, question.is_habitual)
        for question in questions
        if question.kind in ("which_attribute", "which_side", "which_height")
    }
    assert habits == {(False, True), (True, False)}


def crowd(mugs, *others):
    return LabelledPicture(Image.new("RGB", SIZE), tuple(LabelledObject(name) for name in ("mug",) * mugs + others))


def test_numbers_are_asked_of_what_differs_in_them():
    pictures = [crowd(1, "pan"), crowd(1), crowd(1), crowd(1), crowd(3, "pan"), crowd(11), crowd(1)]
    questions = ask_questions(pictures, [SIZE] * 7, NamesTable(NAMES), ())
    asked = {question.picture: question for question in questions if question.kind == "how_many"}
    assert {number: question.options[question.truth] for number, question in asked.items()} == {
        0: "one", 1: "one", 2: "one", 3: "one", 4: "three", 6: "one",
    }  # fmt: skip
    assert [question.is_habitual for question in asked.values()] == [True] * 4 + [False, True]
    assert {question.text for question in asked.values()} == {"how many mugs are there ?"}
    alike = ask_questions([crowd(1, "pan")] * 6, [SIZE] * 6, NamesTable(NAMES), ())
    assert not any(question.kind == "how_many" for question in alike)


def test_weights_of_numbers_are_fitted_where_the_picture_counts_better_than_the_model():
    draw = torch.Generator().manual_seed(5)
    claim = Claim("number", "mug")
    options = find_options(claim, ())
    cases = []
    for number in range(300):
        truth = int(torch.randint(1, 5, (1,), generator=draw))
        margins = torch.randn(len(options), generator=draw)
        margins[1] += 3.0  # it says one, mostly
        counted = truth + (number % 9 == 0)
        odds = -(torch.arange(len(options)) - counted).abs().float()
        cases.append(CalibrationCase(CalibrationQuestion(number, claim, options, truth, truth == 1), margins, odds))
    mixing, findings = fit_mixing(cases)
    before, after = findings["how_many"]["greedy"], findings["how_many"]["with_evidence"]
    assert mixing["how_many"].evidence > 1
    assert after["habit_breaking"] > before["habit_breaking"] + 0.4


@pytest.mark.parametrize(
    ("name", "several"),
    [
        ("mug", "mugs"), ("berry", "berries"), ("key", "keys"), ("box", "boxes"), ("brush", "brushes"), ("knife", "knives"),
        ("sheep", "sheep"), ("young man", "young men"), ("glass", "glasses"),
    ],
)  # fmt: skip
def test_plurals_are_read_as_they_are_written(name, several):
    assert plural(name) == several
    assert NamesTable((name,)).find(several) == name


@pytest.mark.parametrize("norm", [nn.LayerNorm(16), nn.RMSNorm(16, eps=1e-6), None])
def test_a_final_norm_is_known_by_what_it_does(norm):
    if norm is not None:
        for parameter in norm.parameters():
            nn.init.normal_(parameter, 1.0, 0.3, generator=torch.Generator().manual_seed(1))
    states = torch.randn(5, 16, generator=torch.Generator().manual_seed(2)) * 4
    found = read_norm(norm, 16)
    assert found is None if norm is None else torch.allclose(found.apply(states), norm(states), atol=1e-3)


def picture(*things):
    return LabelledPicture(Image.new("RGB", SIZE), tuple(LabelledObject(name) for name in things))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (LabelledPictures([picture(), picture()]), "calibration pictures with labelled objects"),
        (LabelledPictures([picture("mug")] * 2, source="guesses"), "no labels from 'guesses'. Known: labels, self"),
        (
            LabelledPictures([LabelledPicture(Image.new("RGB", SIZE))] * 3, [picture("mug")]),
            "none of these has objects",
        ),
        (LabelledPictures([picture("mug")] * 3, [picture("mug")]), "names that 4 pictures or more show"),
        (
            LabelledPictures([picture("mug")] * 3, [picture("mug")], source="detector"),
            "name it, package.module:function",
        ),
    ],
)
def test_what_cannot_be_fitted_on_is_refused(data, message):
    with pytest.raises(InputError, match=message):
        fit_patch_evidence(None, None, data)


def test_labels_that_tell_nothing_are_refused():
    same = [picture("mug", "spoon")] * 6
    with pytest.raises(InputError, match="all show the same"):
        check_labels(read_labels(same, [SIZE] * 6, NamesTable(NAMES)))
    with pytest.raises(InputError, match="no object is labelled"):
        check_labels(read_labels([picture()] * 6, [SIZE] * 6, NamesTable(NAMES)))


def test_a_fitter_gets_the_data_that_it_asks_for():
    from toy_processor import toy_processor  # noqa: PLC0415

    with pytest.raises(InputError, match="patch_evidence is fitted on pictures, got demonstrations"):
        fit("evidence", None, toy_processor(), [])
    with pytest.raises(InputError, match="nullu is fitted on demonstrations, got labelled pictures"):
        fit("nullu", None, toy_processor(), LabelledPictures([]))
    with pytest.raises(InputError, match="2 pictures or more, got 1"):
        fit("patch_evidence", None, toy_processor(), LabelledPictures([picture("mug")]))
