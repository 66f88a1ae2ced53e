"""What questions and captions claim, and which words name what a head knows."""

from __future__ import annotations

import pytest
from lvlm_guard_evidence.answers import FirstTokens, find_options, kind_of
from lvlm_guard_evidence.claims import Claim, parse_mentions, parse_question
from lvlm_guard_evidence.mixing import Mixing, read_mixing
from lvlm_guard_evidence.names import NamesTable, build_names
from pieces import Pieces

from lvlm_guard import InputError


@pytest.mark.parametrize(
    ("text", "claim"),
    [
        ("is there a mug ?", Claim("object", "mug")),
        ("Is there a dining table in the image? Please answer yes or no.", Claim("object", "dining table")),
        ("USER: \nDo you see an egg? ASSISTANT:", Claim("object", "egg")),
        ("are there any mugs in the kitchen ?", Claim("object", "mugs")),
        ("Does the image show a dog?", Claim("object", "dog")),
        ("Is a dog visible in this picture?", Claim("object", "dog")),
        ("Is there a dog? Yes. Is there a cat?", Claim("object", "cat")),
        ("is the mug red ?", Claim("attribute", "mug", value="red")),
        ("What color are the cars in the photo?", Claim("attribute", "cars")),
        ("what colour is the mug ?", Claim("attribute", "mug")),
        ("is the spoon left of the mug ?", Claim("relation", "spoon", direction="left", reference="mug")),
        ("Is the dog to the right of the cat?", Claim("relation", "dog", direction="right", reference="cat")),
        ("Is the dog on the left side of the cat?", Claim("relation", "dog", direction="left", reference="cat")),
        ("Is the cat under the table?", Claim("relation", "cat", direction="below", reference="table")),
        ("is the tree above the gate ?", Claim("relation", "tree", direction="above", reference="gate")),
        (
            "is the spoon left or right of the mug ?",
            Claim("relation", "spoon", reference="mug", options=("left", "right")),
        ),
        ("How many dogs are there in the image?", Claim("number", "dogs")),
    ],
)
def test_a_question_is_read(text, claim):
    assert parse_question(text) == claim


@pytest.mark.parametrize(
    "text",
    [
        "describe this image .",
        "",
        "?",
        "why is there a dog?",
        "is there no mug ?",
        "Is there a dog on the table?",
        "Is the dog left or above of the cat?",
        "Which is bigger, the dog or the cat?",
        "Is there a dog? What is it doing?",
    ],
)
def test_what_is_no_such_question_is_not_read(text):
    assert parse_question(text) is None


def test_a_caption_claims_objects_values_and_places():
    text = "There is a red mug to the left of a dining table, and an egg."
    claims = parse_mentions(text)
    assert [(text[start:end], claim) for (start, end), claim in claims] == [
        ("a red mug", Claim("object", "mug")),
        ("a red mug", Claim("attribute", "mug", value="red")),
        (text[9:48], Claim("relation", "mug", direction="left", reference="table")),
        ("a dining table", Claim("object", "table")),
        ("a dining table", Claim("attribute", "table", value="dining")),
        ("an egg", Claim("object", "egg")),
    ]


def test_a_caption_is_searched_for_known_names():
    text = "in this kitchen there is a red mug , two dining tables and an egg ."
    found = [(text[start:end], claim) for (start, end), claim in parse_mentions(text, ("mug", "table", "dining table"))]
    assert found[:2] == [("a red mug", Claim("object", "mug")), ("a red mug", Claim("attribute", "mug", value="red"))]
    assert found[2][1] == Claim("object", "dining table")
    assert not any(claim.subject == "egg" for _, claim in found)


def test_names_are_found_by_synonym_and_plural():
    table = build_names(["Bicycle", "dining table", "person", "bus"], {"bicycle": ["Bike"], "person": ["man", "woman"]})
    assert table.names == ("bicycle", "dining table", "person", "bus")
    words = ("bikes", "dining  tables", "Men", "people", "buses", "zebra")
    assert [table.find(word) for word in words] == ["bicycle", "dining table", "person", "person", "bus", None]
    assert table.spellings("bicycle") == ("bicycle", "bike")
    with pytest.raises(InputError, match="stands for 'car' and for 'van'"):
        build_names(["car", "van"], {"car": ["auto"], "van": ["auto"]})


def test_answers_are_told_by_tokens_that_begin_no_other():
    tokens = Pieces(yes=20, no=21, Yes=22, left=30, right=30)
    first = FirstTokens(lambda text: tokens(text)["input_ids"], 3)
    assert first.find(("yes", "no")) == [[20, 22], [21]]
    assert first.find(("left", "right")) is None
    assert first.find(("up", "down")) is None


def test_options_of_a_question():
    which = Claim("relation", "a", reference="b", options=("left", "right"))
    assert find_options(which, ()) == ("left", "right")
    assert find_options(Claim("attribute", "a"), ("red", "blue")) == ("red", "blue")
    assert find_options(Claim("number", "a"), ())[:3] == ("zero", "one", "two")
    claims = (
        Claim("object", "a"),
        Claim("attribute", "a"),
        Claim("attribute", "a", value="b"),
        which,
        Claim("number", "a"),
        Claim("relation", "a", direction="right", reference="b"),
        Claim("relation", "a", direction="below", reference="b"),
        Claim("relation", "a", reference="b", options=("below", "above")),
    )
    kinds = (
        "existence",
        "which_attribute",
        "is_attribute",
        "which_side",
        "how_many",
        "is_side",
        "is_height",
        "which_height",
    )
    assert tuple(map(kind_of, claims)) == kinds
    assert NamesTable(("a",)).merge(["a", "as", "b"]) == ["a"]


def test_weights_of_places_from_before_they_were_fitted_apart_serve_both():
    old = {"mixing": {"is_relation": [0.5, 2, 0.1], "which_side": [0.9, 1, 0]}}
    both, chosen = Mixing(0.5, 2.0, 0.1), Mixing(0.9, 1.0, 0.0)
    assert read_mixing(old) == {"is_side": both, "is_height": both, "which_side": chosen, "which_height": chosen}
    assert read_mixing({"mixing": {"which_side": [0.9, 1, 0]}}) == {"which_side": chosen}
