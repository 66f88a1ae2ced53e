"""CHAIR: what captions name in the official reading and in ours, and the scores of hand cases."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lvlm_guard.bench.items import AnsweredItem
from lvlm_guard.bench.scoring.nouns import Vocabulary, official_singular, our_singular
from lvlm_guard.bench.suites.chair import Chair, finished
from lvlm_guard.errors import InputError

DATA = Path(__file__).parent / "data" / "chair"
VOCABULARY = Vocabulary((DATA / "synonyms.txt").read_text(encoding="utf-8").splitlines())
EVERY = Chair(images=0)
NAMED = [
    # caption, what the official code finds, what ours finds
    ("Two buses and three minibuses.", ["bus", "bus"], ["bus", "bus"]),
    ("A bus.", [], ["bus"]),  # singular of bus: "bu"
    ("A motor bike.", [], ["motorcycle"]),  # its entry begins with a blank
    ("A cheesecake.", [], ["cake"]),  # so does this one
    ("A wine glass and two wine glasses.", ["wine glass"] * 2, ["wine glass"] * 2),  # "wine glas"
    ("A glass.", [], []),
    ("Red ties.", [], ["tie"]),  # "ty"
    ("A bow tie, a tie and a bow.", ["tie"] * 3, ["tie"] * 3),
    ("Two doggies.", [], ["dog"]),
    ("An iPhone.", [], ["cell phone"]),  # captions are lower case, the entry is not
    ("A teddy-bear.", [], ["teddy bear"]),
    ("A teddy bear and a baby bear.", ["teddy bear", "bear"], ["teddy bear", "bear"]),
    ("An adult sheep by home plate.", ["sheep"], ["sheep"]),
    ("A tennis racket and sports balls.", ["tennis racket", "sports ball"], ["tennis racket", "sports ball"]),
    ("A toilet seat and a seat.", ["toilet"], ["toilet", "chair"]),  # no seat counts beside a toilet
    ("A man's seat: the toilet!", ["person", "toilet"], ["person", "chair", "toilet"]),
    ("Women and **children** at dining tables.", ["person", "person", "dining table"], ["person", "person", "dining table"]),
    ("A sofa.", ["couch"], ["couch"]),
    ("Red wine. Glass, teddy; bear.", ["bear"], ["bear"]),  # no phrase spans a mark
    ("The baby's bear.", ["bear"], ["bear"]),
    ("", [], []),
]  # fmt: skip


def scores(said, parser, suite=EVERY):
    suite.load(DATA)
    return {measure.name: measure.value(said) for measure in suite.measures(parser)}


@pytest.fixture
def items():
    return {item.id: item for item in EVERY.load(DATA).items}


@pytest.mark.parametrize(("caption", "official", "ours"), NAMED)
def test_a_caption_names_these_objects(caption, official, ours):
    assert VOCABULARY.official(caption) == official
    assert VOCABULARY.ours(caption) == ours


def test_singulars_differ_where_the_official_ones_are_artefacts():
    words = ("glass", "bus", "tennis", "ties", "mice", "knives", "women", "sandwiches", "puppies", "scissors", "stoves")
    official = [official_singular(word) for word in words]
    assert official[:4] == ["glas", "bu", "tenni", "ty"]
    assert [our_singular(word) for word in words][:4] == ["glass", "bus", "tennis", "tie"]
    assert official[4:] == [our_singular(word) for word in words][4:]
    assert official[4:] == ["mouse", "knife", "woman", "sandwich", "puppy", "scissors", "stove"]


def test_objects_present_are_those_annotated_and_those_in_reference_captions(items):
    assert items["101"].truth == {"ours": ["cell phone", "chair"], "official": ["cell phone", "chair"]}
    assert items["85"].truth == {"ours": ["motorcycle"], "official": ["motorcycle"]}
    assert items["77"].truth["official"] == ["couch", "teddy bear"]
    assert len(items) == 12


def test_scores_of_a_hand_case(items):
    # absent: both chairs of the first; the official reading does not see the bus
    said = [
        AnsweredItem(items["7"], "A man and his dog sit on a chair near a chair."),
        AnsweredItem(items["11"], "A bus waits."),
    ]
    official, ours = scores(said, "official"), scores(said, "ours")
    assert official["chair_i"] == pytest.approx(2 / 4)
    assert ours["chair_i"] == pytest.approx(2 / 5)
    assert official["chair_s"] == ours["chair_s"] == pytest.approx(1 / 2)
    assert official["recall"] == pytest.approx(2 / 3)
    assert ours["recall"] == pytest.approx(3 / 3)
    assert ours["length"] == pytest.approx((12 + 3) / 2)
    assert EVERY.official(said, "official") == {"CHAIRs": 50.0, "CHAIRi": 50.0}
    assert EVERY.official(said, "ours") == {"CHAIRs": 50.0, "CHAIRi": 40.0}


def test_a_caption_that_names_nothing_has_no_official_chair_i(items):
    said = [AnsweredItem(items["11"], "A bus waits.")]
    assert EVERY.official(said, "official") == {"CHAIRs": 0.0, "CHAIRi": None}
    assert EVERY.official([], "official") == {"CHAIRs": None, "CHAIRi": None}


def test_the_subset_is_the_seeds_and_a_list_of_ids_wins(tmp_path):
    drawn = [[item.id for item in Chair(images=11, seed=seed).load(DATA).items] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 11
    for name, text in (("ids.txt", "64\n7\n7\n"), ("ids.json", "[64, 7]")):
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert [item.id for item in Chair(ids=str(tmp_path / name)).load(DATA).items] == ["64", "7"]
    (tmp_path / "ids.txt").write_text("64 8", encoding="utf-8")
    with pytest.raises(InputError, match=r"the id 8, which instances_val2014\.json does not have"):
        Chair(ids=str(tmp_path / "ids.txt")).load(DATA)


def test_an_unfinished_sentence_can_be_left_out():
    assert finished("A cat. A dog and a") == "A cat."
    assert finished("A cat. A dog!") == "A cat. A dog!"
    assert finished("A cat and a dog") == "A cat and a dog"
    suite = Chair(images=0, drop_unfinished=True)
    said = [AnsweredItem(item, "A man. A chair and") for item in suite.load(DATA).items if item.id == "7"]
    assert scores(said, "ours", suite)["chair_i"] == 0
    assert scores(said, "ours")["chair_i"] == pytest.approx(1 / 2)


def test_prompt_and_length_are_arguments():
    item = Chair(images=1, prompt="Describe.", max_new_tokens=64).load(DATA).items[0]
    assert (item.prompt, item.max_new_tokens) == ("Describe.", 64)


def test_scores_need_the_vocabulary():
    with pytest.raises(InputError, match=r"Call load\(data\) on the same object first"):
        Chair().measures("ours")


def test_bad_records_are_counted_and_an_unknown_category_is_refused(tmp_path):
    shutil.copytree(DATA, tmp_path / "chair")
    path = tmp_path / "chair" / "instances_val2014.json"
    instances = json.loads(path.read_text(encoding="utf-8"))
    instances["annotations"][2]["category_id"] = 99
    instances["annotations"][5] = "?"
    path.write_text(json.dumps(instances), encoding="utf-8")
    problems = EVERY.load(tmp_path / "chair").problems
    assert [problem.line for problem in problems] == [3, 6]
    instances["categories"][0]["name"] = "gryphon"
    path.write_text(json.dumps(instances), encoding="utf-8")
    with pytest.raises(InputError, match=r"the category 'gryphon' is not in synonyms\.txt"):
        EVERY.load(tmp_path / "chair")
