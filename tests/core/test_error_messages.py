"""What every error message keeps to: no longer than a screen, and the name that was most likely meant."""

import pytest

from lvlm_guard.errors import SCREEN, InputError, ModelRefused, nearest, quote

NAMES = ("vcd", "vdd", "icd", "m3id", "pai", "dola", "deco", "opera", "memvr")


@pytest.mark.parametrize("error", [InputError, ModelRefused])
def test_a_message_is_never_longer_than_a_screen(error):
    message = str(error("data:" + "x" * 2_400_000 + " What to do."))
    assert len(message) <= SCREEN
    assert message.startswith("data:")
    assert message.endswith(" What to do.")
    assert "2400017 characters" in message


@pytest.mark.parametrize(
    ("written", "meant"),
    [("vdc", "vcd"), ("VCD", "vcd"), ("DoLa", "dola"), ("dloa", "dola"), ("mem_vr", "memvr"), ("operas", "opera")],
)
def test_the_nearest_name_is_found_by_what_a_hand_does(written, meant):
    assert f"Did you mean {meant!r}?" in nearest(written, NAMES)


@pytest.mark.parametrize("written", ["zzz", "", "max_new_tokens", "x" * 100_000, 7, None])
def test_what_is_like_no_name_gets_no_guess(written):
    told = nearest(written, NAMES)
    assert "Did you mean" not in told
    assert "Known: deco, dola" in told


def test_a_quoted_value_is_abridged_however_deep_or_long():
    loop = []
    loop.append(loop)
    for value in ("x" * 10_000, [["y" * 999] * 99] * 99, loop, {1: {2: {3: {4: {5: {6: {7: 8}}}}}}}):
        assert len(quote(value)) <= 80
    assert quote("short") == "'short'"
