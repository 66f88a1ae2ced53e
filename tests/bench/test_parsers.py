"""The same answer read by the parsers of different scripts, worked out by hand from their rules."""

from __future__ import annotations

import pytest

from lvlm_guard.bench.scoring import parsers
from lvlm_guard.errors import InputError

YES, NO, NEITHER = True, False, None
READ_AS = [
    # answer, POPE's script, lmms-eval, VLMEvalKit, ours
    ("Yes", YES, YES, YES, YES),
    ("no", NO, NO, NO, NO),
    (" yes ", YES, YES, YES, YES),
    ("Yes.", YES, NEITHER, YES, YES),
    ("No.", NO, NEITHER, NO, NO),
    ("Yes, there is a dog.", YES, NEITHER, YES, YES),
    ("No, there is no dog.", NO, NEITHER, NO, NO),
    ("YES!", YES, NEITHER, YES, YES),
    ("NO", YES, NO, NO, NO),
    ("No\n", YES, NO, NO, NO),
    ("No!", YES, NEITHER, NO, NO),
    ("no;", YES, NEITHER, NO, NO),
    ("(No)", YES, NEITHER, NO, NO),
    ("'No'", YES, NEITHER, NEITHER, NO),
    ("**No**", YES, NEITHER, NEITHER, NO),
    ("Answer: No", NO, NEITHER, NO, NO),
    ("The answer is no.", NO, NEITHER, NO, NO),
    ("no, not at all", NO, NEITHER, NO, NO),
    ("no-one is there", YES, NEITHER, NO, NO),
    ("The image shows a cat. No dog is visible.", YES, NEITHER, NO, NO),
    ("Yes, there is no doubt.", NO, NEITHER, NEITHER, YES),
    ("yes no", NO, NEITHER, NEITHER, YES),
    ("Yes/No", YES, NEITHER, NEITHER, YES),
    ("I'm not sure.", NO, NEITHER, NEITHER, NEITHER),
    ("It is not visible.", NO, NEITHER, NEITHER, NEITHER),
    ("There isn't a dog.", YES, NEITHER, NEITHER, NEITHER),
    ("cannot tell", YES, NEITHER, NEITHER, NEITHER),
    ("Nope", YES, NEITHER, NEITHER, NEITHER),
    ("n", YES, NEITHER, NEITHER, NEITHER),
    ("", YES, NEITHER, NEITHER, NEITHER),
]


@pytest.mark.parametrize(("text", "pope", "lmms_eval", "vlmevalkit", "ours"), READ_AS)
def test_each_parser_reads_an_answer_by_its_own_rule(text, pope, lmms_eval, vlmevalkit, ours):
    assert parsers.official_pope(text) is pope
    assert parsers.lmms_eval(text) is lmms_eval
    assert parsers.vlmevalkit(text) is vlmevalkit
    assert parsers.ours(text) is ours


def test_the_answers_separate_every_two_parsers():
    columns = list(zip(*(row[1:] for row in READ_AS), strict=True))
    apart = {
        (one, other): sum(a is not b for a, b in zip(columns[one], columns[other], strict=True))
        for one in range(4)
        for other in range(one)
    }
    print("answers read differently:", apart)
    assert apart[1, 0] >= 20  # POPE's script and lmms-eval
    assert min(apart.values()) >= 4


@pytest.mark.parametrize(("text", "said"), [("Yes", YES), ("No", NO), ("yes", None), ("No.", None), (" No", None)])
def test_ambers_script_takes_two_exact_words(text, said):
    assert parsers.official_amber(text) is said


@pytest.mark.parametrize(
    ("text", "official", "lmms_eval"),
    [
        ("Yes, it is", YES, YES),
        ("Not sure", NO, NO),
        ("know", NO, NO),
        ("n", None, NO),
        ("Y.", None, YES),
        (". Yes", None, YES),
        ("\n\n\nNo", None, NO),
        ("The answer is yes", None, None),
    ],
)
def test_mme_reads_the_first_four_characters(text, official, lmms_eval):
    assert parsers.official_mme(text) is official
    assert parsers.lmms_eval_mme(text) is lmms_eval


def test_reefknot_reads_the_two_of_a_pair_by_opposite_defaults():
    assert parsers.official_reefknot("Her eyes are blue") is YES
    assert parsers.official_reefknot("Certainly") is NO
    assert parsers.official_reefknot_second("I know it is") is NO
    assert parsers.official_reefknot_second("Certainly") is YES


def test_vlmevalkit_deletes_marks_where_a_number_has_a_comma_and_at_most_32_dots():
    assert parsers.vlmevalkit("it costs 100-yes") is YES
    assert parsers.vlmevalkit("it costs 1,000-yes") is None  # "1000yes"
    assert parsers.vlmevalkit("." * 32 + "yes") is YES
    assert parsers.vlmevalkit("." * 33 + "yes") is None


def test_an_unknown_parser_is_refused_with_the_nearest_name():
    with pytest.raises(InputError, match=r"pope has no parser 'our'. Did you mean 'ours'\?"):
        parsers.named("pope", parsers.COMMON, "our")
