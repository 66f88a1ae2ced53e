"""The fitted bias: pushed either way for balanced accuracy, by what was fitted on other pictures, from greedy's margins."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import quick_run

from lvlm_guard.bench.catalogue import SuiteCatalogue, SuiteOffer
from lvlm_guard.bench.items import AnsweredItem, Item
from lvlm_guard.bench.reporting import comparing, export, page, results
from lvlm_guard.bench.reporting.answers import read_suite_answers
from lvlm_guard.bench.running import systems
from lvlm_guard.bench.running.manifest import RunPlan, SuiteChoice
from lvlm_guard.bench.scoring.fitted_bias import ANSWERS, apply_fitted_bias, find_fold, fit_shift
from lvlm_guard.bench.scoring.intervals import share
from lvlm_guard.bench.scoring.margins import says_yes
from lvlm_guard.bench.scoring.measures import Measure, each
from lvlm_guard.bench.scoring.parsers import (
    COMMON,
    official_amber,
    official_mme,
    official_pope,
    official_reefknot,
    official_reefknot_second,
    ours,
)


def answer(number, truth, margin, level="object", kind="is", text=None, cluster=None):
    item = Item(str(number), cluster or f"p{number // 2}", "a", truth, level, kind)
    said = text if text is not None else "Yes." if (margin or 0) > 0 else "No."
    return AnsweredItem(item, said, 2, margin)


def leaning(lean, count=400, seed=0, **about):
    """Answers of a model that tells yes from no by a margin of about one, and leans."""
    draw = np.random.default_rng(seed)
    truths = draw.random(count) < 0.5
    margins = np.where(truths, 1.0, -1.0) + lean + draw.normal(0, 0.7, count)
    return [
        answer(number, "yes" if truth else "no", float(margin), **about)
        for number, (truth, margin) in enumerate(zip(truths, margins, strict=True))
    ]


def balanced(answers):
    right = {
        truth: [ours(one.text) is truth for one in answers if says_yes(one.item.truth) is truth]
        for truth in (True, False)
    }
    return sum(sum(own) / len(own) for own in right.values()) / 2


def test_the_best_shift_is_that_of_a_search_over_all():
    draw = np.random.default_rng(3)
    for _ in range(50):
        margins, truths = draw.normal(0, 1, 13).round(1), draw.random(13) < 0.5
        if truths.all() or not truths.any():
            continue

        def score(shift, margins=margins, truths=truths):
            says = margins + shift > 0
            return (says[truths].mean() + (~says)[~truths].mean()) / 2

        assert score(fit_shift(margins, truths)) == pytest.approx(max(score(one) for one in np.linspace(-5, 5, 2001)))
    assert fit_shift([1.0, 2.0], [True, True]) == 0
    assert fit_shift([-1.0, 2.0], [False, True]) == 0, "the smallest of several as good"


@pytest.mark.parametrize("lean", [1.5, -1.5])
def test_a_lean_either_way_is_taken_back(lean):
    plain = leaning(lean)
    pushed, strengths = apply_fitted_bias(plain)
    assert balanced(plain) < 0.8
    assert balanced(pushed) > 0.89
    assert {strength.level for strength in strengths} == {"object"}
    assert all(strength == pytest.approx(-lean / 2, abs=0.2) for one in strengths for strength in one.strengths)
    assert sum(one.n for one in strengths) == len(plain)


def test_levels_and_kinds_are_pushed_apart():
    plain = [
        *leaning(1.5, seed=1, level="object"),
        *leaning(-1.5, seed=2, level="relation"),
        *leaning(1.5, seed=3, level="relation", kind="was"),
    ]
    pushed, strengths = apply_fitted_bias(plain)
    found = {(one.level, one.kind): one.strengths[0] for one in strengths}
    assert found["object", "is"] < -0.5
    assert found["relation", "is"] > 0.5
    assert found["relation", "was"] < -0.5
    assert balanced(pushed) > 0.89


def test_a_kind_of_few_questions_is_pushed_as_its_level():
    few = [answer(9000 + number, "yes", 1.0, kind="rare") for number in range(6)]
    _, strengths = apply_fitted_bias([*leaning(1.5), *few])
    common, rare = (next(one for one in strengths if one.kind == kind) for kind in ("is", "rare"))
    assert rare.strengths[0] == pytest.approx(common.strengths[0], abs=0.3)
    assert rare.fitted_on > 100


def test_no_picture_is_answered_by_a_push_that_has_seen_it():
    plain = leaning(1.0)
    fold = find_fold(plain[0].item.cluster)
    moved = [
        dataclasses.replace(one, margin=2 - one.margin) if find_fold(one.item.cluster) == fold else one for one in plain
    ]
    before, after = (apply_fitted_bias(one)[1][0].strengths for one in (plain, moved))
    assert before[fold] == after[fold]
    assert sum(one != other for one, other in zip(before, after, strict=True)) >= 3, "no power"


def test_noise_gains_nothing():
    draw = np.random.default_rng(0)
    gains, fitted_to_itself = [], []
    for _ in range(30):
        plain = [answer(n, "yes" if draw.random() < 0.5 else "no", float(draw.normal())) for n in range(120)]
        gains.append(balanced(apply_fitted_bias(plain)[0]) - balanced(plain))
        fitted_to_itself.append(balanced(apply_fitted_bias(plain, plain)[0]) - balanced(plain))
    assert np.mean(gains) < 0.02
    assert np.mean(fitted_to_itself) > 0.05, "no power"


def test_what_the_push_does_not_turn_round_stays_as_it_was_said():
    plain = [
        *leaning(1.5),
        answer(9001, "yes", None, text="maybe"),
        answer(9002, ["a dog"], 1.0, kind="caption", text="a dog ."),
        answer(9003, "yes", 30.0, text="Yes, there is."),
    ]
    pushed, _ = apply_fitted_bias(plain)
    assert [one.text for one in pushed[-3:]] == ["maybe", "a dog .", "Yes, there is."]
    assert [one.item for one in pushed] == [one.item for one in plain]
    turned = [one.text for one, before in zip(pushed, plain, strict=True) if one.text != before.text]
    assert len(turned) > 30
    assert set(turned) <= set(ANSWERS.values())


@pytest.mark.parametrize(
    "parser",
    [*COMMON.values(), official_amber, official_mme, official_pope, official_reefknot, official_reefknot_second],
)
def test_every_parser_reads_a_turned_answer(parser):
    assert {truth: parser(text) for truth, text in ANSWERS.items()} == {True: True, False: False}


def test_calibration_answers_take_the_place_of_folds():
    pushed, strengths = apply_fitted_bias(leaning(1.5, seed=1), leaning(-1.5, seed=2))
    assert len(strengths[0].strengths) == 1
    assert strengths[0].strengths[0] > 0.5
    assert balanced(pushed) < balanced(leaning(1.5, seed=1))


# In runs


@dataclass(frozen=True)
class Splitting(quick_run.Toy):
    """The toy with a split and a measure."""

    name: ClassVar[str] = "toy"
    pictures: int = 30
    split: str = "counterfactual"

    def measures(self, parser):
        def right(one):
            truth = says_yes(one.item.truth)
            return None if truth is None else (float(ours(one.text) is truth), 1.0)

        return (Measure("accuracy", "object", "right answers", each(right), share, binary=True),)


@pytest.fixture(autouse=True)
def _in_the_catalogue(monkeypatch):
    monkeypatch.setattr(SuiteCatalogue, "find", lambda _, name: SuiteOffer(Splitting, "tests"))


def run(folder, without, *splits):
    suites = {split: SuiteChoice(Splitting(split=split), "ours", {"split": split}) for split in splits}
    return quick_run.run(folder, RunPlan(suites, systems.build_systems({}, without), without, batch=4))


OTHERS = tuple(name for name in systems.CONTROLS if name not in ("greedy", "bias"))


def test_the_bias_stands_in_scores_page_export_and_comparisons_as_a_control(tmp_path):
    record = run(tmp_path / "run", OTHERS, "iid")
    assert record.systems == ("greedy",)
    scored = results.score(record, resamples=99)
    found = scored.of("iid", "accuracy")
    assert list(found) == ["greedy", "bias"]
    assert found["bias"].against_greedy is not None
    assert scored.manifest["systems"]["bias"]["role"] == "control"
    assert "margins" in scored.manifest["systems"]["bias"]["decoding"]
    written, _ = export.write(scored, tmp_path)
    strengths = json.loads(written.read_text())["bias"]["iid"]
    assert {one["kind"] for one in strengths} == {"is", "was"}
    assert all(len(one["strengths"]) == 5 for one in strengths)
    page.write(record, scored, tmp_path / "page.html")
    assert "computed from greedy" in (tmp_path / "page.html").read_text()
    compared = comparing.compare(record, record)
    assert compared.changed["iid"]["bias"].is_none
    assert {pair.system for pair in compared.pairs} == {"greedy", "bias"}


def test_the_bias_is_switched_off_like_any_control_and_needs_greedy(tmp_path):
    off = run(tmp_path / "off", (*OTHERS, "bias"), "iid")
    without_greedy = run(tmp_path / "none", tuple(name for name in systems.CONTROLS if name != "sampling"), "iid")
    for record in (off, without_greedy):
        scored = results.score(record, resamples=99)
        assert "bias" not in scored.manifest["systems"]
        assert "bias" not in scored.of("iid", "accuracy")
        assert not scored.bias["iid"]


def test_a_run_with_calibration_items_fits_the_bias_on_them(tmp_path):
    record = run(tmp_path, OTHERS, "iid", "calibration")
    own, calibration = (read_suite_answers(record, name) for name in ("iid", "calibration"))
    assert {len(one.strengths) for one in own.bias} == {1}
    assert {len(one.strengths) for one in calibration.bias} == {5}
