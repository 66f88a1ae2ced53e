"""What every error message keeps to: no longer than a screen, and the name that was most likely meant."""

from contextlib import suppress

import numpy as np
import pytest
import torch
from PIL import Image

from lvlm_guard import Guard, Stack
from lvlm_guard.errors import SCREEN, GuardError, GuardWarning, InputError, ModelRefused, describe_error, nearest, quote
from lvlm_guard.strategy.user_functions import AllowedName, call_user_function, resolve
from lvlm_guard.testing import TinyProcessor, tiny
from lvlm_guard.user_warnings import warn_user

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


class Mute(Exception):
    """A value, an error and a key that cannot be shown."""

    def __repr__(self):
        raise RuntimeError("no repr")

    __str__ = __repr__


class Closed(dict):
    """A dict that cannot be read."""

    def get(self, *_):
        raise RuntimeError("no get")

    __getitem__ = __contains__ = __iter__ = keys = items = get


def test_what_cannot_be_shown_is_named_by_its_class():
    mute = Mute()
    for look_alike in (mute, type("int", (Mute,), {})(), type("dict", (Mute,), {"__len__": lambda _: 1})()):
        assert type(look_alike).__name__ in quote(look_alike)
    assert describe_error(mute) == "Mute"
    assert describe_error(ValueError("why")) == "ValueError: why"
    assert "Known: deco" in nearest(mute, NAMES)


@pytest.fixture(scope="module")
def guard():
    return Guard(tiny("llava")[0], TinyProcessor("llava"), [])


ODD = {
    "0-d": np.zeros(()), "empty": np.zeros(0), "array": np.zeros((2, 2)), "tensor": torch.zeros(2), "meta": torch.zeros(2, device="meta"),
    "mute": Mute(), "closed": Closed(type="image", url="x", name="vcd", role="user"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ODD)
def test_a_value_that_answers_nothing_ends_in_an_error_of_ours(kind, guard):
    value, picture = ODD[kind], Image.new("RGB", (30, 30), "red")
    for message in (
        {"role": "user", "tool_calls": value},
        {"role": value, "content": "w1"},
        {"role": "user", "content": value},
        {"role": "user", "content": [{"type": value, "text": "w1"}]},
        {"role": "user", "content": [{"type": "text", "text": value}]},
    ):
        with pytest.raises(InputError):
            guard.inputs(messages=[message])
    with suppress(InputError):  # an array is a picture
        guard.inputs(messages=[{"role": "user", "content": [{"type": "image", "url": value}]}])
    with pytest.raises(InputError):
        guard.inputs(messages=[Closed(role="user", content="w1")])
    for option in ("return_tensors", "padding_side"):
        with pytest.raises(InputError):
            guard.inputs(images=picture, text="<image> w1", **{option: value})
    for option in ("do_rescale", "padding", "images_kwargs"):
        with suppress(InputError):  # the processor is free to take it
            guard.inputs(images=picture, text="<image> w1", **{option: value})
    for option in ("executor", "without_image", "pictures"):
        with pytest.raises(InputError):
            Guard(guard.model, guard.processor, [], **{option: value})
    if kind != "empty":
        with pytest.raises(InputError):
            Stack.of("vcd", allow=value)
    with pytest.raises(InputError):
        Stack.of([value])


HALF = "\ud800"
DOORS = {
    "stack file": lambda guard: Stack.read(f"{HALF}.toml"),
    "stack": lambda guard: Stack.of(HALF),
    "parameter": lambda guard: Stack.of([{"name": "vcd", "params": {HALF: 1}}]),
    "key": lambda guard: Stack.of({HALF: 1}),
    "picture": lambda guard: guard.inputs(images=f"{HALF}.png", text="<image> w1"),
    "role": lambda guard: guard.inputs(messages=[{"role": 1, HALF: HALF}]),
    "type": lambda guard: guard.inputs(messages=[{"role": "user", "content": [{"type": HALF}]}]),
    "option": lambda guard: guard.inputs(images=HALF, text="<image> w1", **{HALF: Mute()}),
    "function": lambda guard: call_user_function(fail_with_half, what="source", timeout=9),
    "name": lambda guard: resolve(AllowedName(f"{HALF}:f"), HALF),
}


def fail_with_half():
    raise RuntimeError(HALF)


@pytest.mark.parametrize("door", DOORS)
def test_a_message_can_be_written_whatever_it_speaks_of(door, guard):
    with pytest.raises(GuardError) as caught:
        DOORS[door](guard)
    assert str(caught.value).encode()


def test_a_warning_can_be_written_whatever_it_speaks_of():
    with pytest.warns(GuardWarning) as caught:
        warn_user(f"A file called {HALF}.", GuardWarning)
    assert str(caught[0].message) == "A file called \\ud800."


@pytest.mark.parametrize("key", [Mute(), 10**5000], ids=["mute", "huge"])
def test_a_key_that_cannot_be_shown_is_refused(key):
    for stack in ({key: 1}, [{"name": "vcd", key: 1}], [{"name": "vcd", "params": {key: 1}}]):
        with pytest.raises(InputError):
            Stack.of(stack)
