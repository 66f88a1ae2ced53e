"""`--model_args` as lmms-eval parses them: it recognises numbers and booleans and passes everything else as text."""

from __future__ import annotations

import pytest

from lvlm_guard import InputError, Stack, StackError
from lvlm_guard.harness.settings import Settings, read_stack


def test_arguments_have_defaults():
    settings = Settings.from_arguments({"pretrained": "testbed"})
    assert (settings.stack, settings.executor, settings.batch_size, settings.max_new_tokens) == ("vcd", "auto", 1, 1024)
    assert not settings.stop_at_blank_line


def test_numbers_may_come_as_text():
    arguments = {"pretrained": "testbed", "batch_size": "8", "stop_at_blank_line": True, "device": "cpu"}
    settings = Settings.from_arguments(arguments)
    assert (settings.batch_size, settings.stop_at_blank_line, settings.device) == (8, True, "cpu")


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
        Settings.from_arguments(arguments)


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
def test_a_text_that_names_no_stack_is_refused(text):
    with pytest.raises(StackError):
        read_stack(text)
