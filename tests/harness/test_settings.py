"""`--model_args` as lmms-eval reads them: numbers and truth values are recognised, the rest is text."""

from __future__ import annotations

import pytest

from lvlm_guard import InputError, Stack, StackError
from lvlm_guard.harness.settings import Settings, read_stack


def test_what_is_left_out_has_a_default():
    found = Settings.of({"pretrained": "testbed"})
    assert (found.stack, found.executor, found.batch_size, found.max_new_tokens) == ("vcd", "auto", 1, 1024)
    assert not found.stop_at_blank_line


def test_numbers_may_come_as_text():
    found = Settings.of({"pretrained": "testbed", "batch_size": "8", "stop_at_blank_line": True, "device": "cpu"})
    assert (found.batch_size, found.stop_at_blank_line, found.device) == (8, True, "cpu")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pretrained": "testbed", "stcak": "vcd"}, r"no argument is called 'stcak'.*'stack'"),
        ({"stack": "vcd"}, r"pretrained: .*required"),
        ({"pretrained": "testbed", "batch_size": "auto"}, r"batch_size: .*got 'auto'"),
        ({"pretrained": "testbed", "batch_size": 0}, r"batch_size: .*got 0"),
        ({"pretrained": "testbed", "stack": 7}, r"stack: .*got 7"),
    ],
)
def test_arguments_that_cannot_be_used_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        Settings.of(arguments)


@pytest.mark.parametrize(
    ("text", "names"),
    [("vcd", ("vcd",)), ("vcd+m3id", ("vcd", "m3id")), (" vcd + m3id ", ("vcd", "m3id")), ("plain", ())],
)
def test_a_stack_is_a_name_or_names_joined_by_plus(text, names):
    assert read_stack(text).names == names


def test_a_stack_may_be_a_file_whatever_its_name(tmp_path):
    file = tmp_path / "strong+.toml"
    file.write_text('[[stack]]\nname = "vcd"\nparams = {alpha = 3.0}\n', encoding="utf-8")
    assert read_stack(str(file)) == Stack.of({"name": "vcd", "params": {"alpha": 3.0}})


@pytest.mark.parametrize("text", ["vdc", "vcd+", "", "vcd+vcd", "missing.toml"])
def test_a_stack_that_is_none_is_refused(text):
    with pytest.raises(StackError):
        read_stack(text)
