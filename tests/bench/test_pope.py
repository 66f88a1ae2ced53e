"""POPE's files and figures, against a case worked out by hand."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lvlm_guard.bench.items import AnsweredItem
from lvlm_guard.bench.suites.pope import Pope
from lvlm_guard.errors import InputError

DATA = Path(__file__).parent / "data" / "pope"


def answered(items, texts):
    return [AnsweredItem(item, text) for item, text in zip(items, texts, strict=True)]


def values(suite, said, parser):
    return {measure.name: measure.value(said) for measure in suite.measures(parser)}


@pytest.fixture
def random_ones():
    return [item for item in Pope().load(DATA).items if item.kind == "random"]


def test_json_lines_arrays_and_jsonl_copies_are_all_read():
    items = Pope().load(DATA).items
    assert [sum(item.kind == kind for item in items) for kind in ("random", "popular", "adversarial")] == [10, 10, 10]
    array = Pope(source="aokvqa").load(DATA).items
    assert [(item.prompt, item.truth) for item in array] == [
        (item.prompt, item.truth) for item in items if item.kind == "random"
    ]
    assert items[0].prompt == "Is there a kettle in the image?"
    assert items[0].cluster == "COCO_val2014_000000000101.jpg"
    assert len({item.id for item in items}) == 30


def test_the_prompt_is_the_files_and_the_suffix_comes_behind_it():
    suffixed = Pope(prompt_suffix=" One word.").load(DATA).items
    assert [item.prompt for item in suffixed] == [item.prompt + " One word." for item in Pope().load(DATA).items]


def test_measures_of_a_hand_case(random_ones):
    # truth yes, no, yes, no ...: of five yes, said yes yes yes no neither; of five no, said no no no yes neither
    texts = ["Yes", "No", "Yes", "No", "Yes", "No", "No", "Yes", "Nope", "I think not"]
    scores = values(Pope(), answered(random_ones, texts), "ours")
    assert scores["accuracy"] == pytest.approx(6 / 10)
    assert scores["precision"] == pytest.approx(3 / 4)
    assert scores["recall"] == pytest.approx(3 / 5)
    assert scores["f1"] == pytest.approx(2 * 3 / (4 + 5))
    assert scores["balanced_accuracy"] == pytest.approx(3 / 5)
    assert scores["harmonic_recall"] == pytest.approx(3 / 5)
    assert scores["yes_ratio"] == pytest.approx(4 / 10)
    assert scores["unparsed"] == pytest.approx(2 / 10)
    assert scores["accuracy_random"] == scores["accuracy"]
    assert scores["accuracy_popular"] != scores["accuracy_popular"]  # nan: nothing was asked


def test_the_three_scripts_differ_on_the_same_answers(random_ones):
    texts = ["Yes", "No", "Yes", "No", "Yes", "No", "No", "Yes", "Nope", "I think not"]
    said = answered(random_ones, texts)
    pope, lmms, kit = (Pope().official(said, parser) for parser in ("official", "lmms_eval", "vlmevalkit"))
    # POPE's script: "Nope" is a yes, "not" a no: hits 4 of 5, rejections 4 of 5, said yes 5
    assert pope["random/accuracy"] == pytest.approx(8 / 10)
    assert (pope["random/precision"], pope["random/recall"]) == (pytest.approx(4 / 5), pytest.approx(4 / 5))
    assert pope["random/yes_ratio"] == pytest.approx(5 / 10)
    # lmms-eval: both are wrong, but "Nope" is no miss; the yes-ratio is the truth's
    assert lmms["random/accuracy"] == pytest.approx(6 / 10)
    assert lmms["random/recall"] == pytest.approx(3 / 4)
    assert lmms["random/yes_ratio"] == pytest.approx(5 / 10)
    # VLMEvalKit: percent, and it is a miss
    assert kit["random/recall"] == pytest.approx(60)
    assert kit["random/accuracy"] == pytest.approx(60)
    assert {figures["random/n"] for figures in (pope, lmms, kit)} == {10}


def test_where_popes_script_divides_by_zero_it_has_no_figures(random_ones):
    said = answered(random_ones, ["No"] * 10)
    official = Pope().official(said, "official")
    assert {name: value for name, value in official.items() if name != "random/n"} == dict.fromkeys(
        ("random/accuracy", "random/precision", "random/recall", "random/f1", "random/yes_ratio")
    )
    assert Pope().official(said, "lmms_eval")["random/f1"] == 0
    assert values(Pope(), said, "official")["accuracy"] == pytest.approx(1 / 2)


def test_answering_yes_always_earns_f1_but_no_harmonic_recall(random_ones):
    scores = values(Pope(), answered(random_ones, ["Yes"] * 10), "official")
    assert scores["f1"] == pytest.approx(2 / 3)
    assert scores["harmonic_recall"] == 0
    assert scores["yes_ratio"] == 1


def test_bad_rows_are_problems_with_their_lines(tmp_path):
    lines = (DATA / "coco_pope_random.json").read_text(encoding="utf-8").splitlines()
    lines[1], lines[3], lines[5], lines[7] = "{", lines[3].replace('"no"', '"maybe"'), lines[4], ""
    (tmp_path / "coco_pope_random.json").write_text("\n".join(lines), encoding="utf-8")
    loaded = Pope().load(tmp_path)
    assert [problem.line for problem in loaded.problems] == [2, 4, 6]
    assert "'label' should be one of no, yes, and is 'maybe'" in loaded.problems[1].what
    assert "occurred before" in loaded.problems[2].what
    assert len(loaded.items) == 6


def test_two_files_of_one_kind_are_refused_until_one_is_named(tmp_path):
    for name in ("coco_pope_random.json", "llava/coco_pope_random.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(DATA / "coco_pope_random.json", tmp_path / name)
    with pytest.raises(InputError, match=r"llava/coco_pope_random\.jsonl"):
        Pope().load(tmp_path)
    assert len(Pope(files="llava/*.jsonl").load(tmp_path).items) == 10
    with pytest.raises(InputError, match="is no glob below the data folder"):
        Pope(files="/*.jsonl").load(tmp_path)


@pytest.mark.parametrize("arguments", [{"source": "cocoa"}, {"prompt_suffix": 3}, {"files": None}])
def test_impossible_arguments_are_refused(arguments):
    with pytest.raises(InputError, match=r"pope: .* is not possible"):
        Pope(**arguments)
