"""Stacks from everything a user may write, and errors that name the path and the nearest name."""

import json

import pytest
from lvlm_guard_contrastive import M3ID, VCD

from lvlm_guard import Stack, StackError

TOML = '[[stack]]\nname = "vcd"\nparams = {alpha = 0.5}\n\n[[stack]]\nname = "m3id"\n'
YAML = "stack:\n  - name: vcd\n    params: {alpha: 0.5}\n  - m3id\n"
WANTED = (VCD(alpha=0.5), M3ID())


@pytest.mark.parametrize(
    "value",
    [
        [VCD(alpha=0.5), M3ID()],
        [{"name": "vcd", "params": {"alpha": 0.5}}, "m3id"],
        {"stack": [{"name": "vcd", "params": {"alpha": 0.5}}, {"name": "m3id"}]},
        Stack(WANTED),
    ],
)
def test_every_form_gives_the_same_stack(value):
    assert Stack.of(value).strategies == WANTED
    assert Stack.of(Stack.of(value).to_dict()).strategies == WANTED


@pytest.mark.parametrize(("name", "text"), [("a.toml", TOML), ("a.yaml", YAML), ("a.yml", YAML)])
def test_files_give_the_same_stack(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    assert Stack.of(path).strategies == WANTED
    assert Stack.of(str(path)).strategies == WANTED


def test_single_values_and_nothing():
    assert Stack.of("vcd").strategies == (VCD(),)
    assert Stack.of(VCD()).strategies == (VCD(),)
    assert Stack.of({"name": "vcd"}).strategies == (VCD(),)
    assert len(Stack.of(None)) == len(Stack.of([])) == 0


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("vdc", r"stack\[0\]: .*'vdc'. Did you mean 'vcd"),
        ([VCD(), "vcd"], r"stack\[1\]: 'vcd' is already at stack\[0\]"),
        ([{"name": "vcd", "params": {"alhpa": 1}}], r"stack\[0\].params.alhpa: .*Did you mean 'alpha'"),
        ([{"name": "vcd", "parms": {}}], r"stack\[0\].parms: unknown key. Did you mean 'params'"),
        ([{"name": "vcd", "params": {"alpha": "much"}}], r"stack\[0\].params: alpha: .*got 'much'"),
        ({"stacks": []}, r"stacks: unknown key. Did you mean 'stack'"),
        ([3], r"stack\[0\]: expected a strategy"),
        ([VCD], r"stack\[0\]: expected a strategy"),
        ([{"name": 3}], r"stack\[0\]: expected name as text"),
    ],
)
def test_errors_name_the_path_and_the_nearest_name(value, words):
    with pytest.raises(StackError, match=words):
        Stack.of(value)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.toml", "[[stack]\nname=", "cannot be read"),
        ("a.yaml", "stack: [", "cannot be read"),
        ("a.yaml", "- vcd", "top-level list called 'stack'"),
        ("a.toml", '[[stack]]\nname = "m3idd"', r"a.toml: stack\[0\]: .*Did you mean 'm3id'"),
        ("a.json", "{}", "ends in .toml, .yaml, .yml"),
    ],
)
def test_broken_files(tmp_path, name, text, words):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(StackError, match=words):
        Stack.of(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(StackError, match="cannot be read"):
        Stack.of(tmp_path / "none.toml")


def test_paths_are_text_in_a_stack_that_is_written_down():
    stack = Stack.of([{"name": "adhh", "params": {"artefact": "heads.safetensors"}}])
    told = json.loads(json.dumps(stack.to_dict()))
    assert told["stack"][0]["params"]["artefact"] == "heads.safetensors"
    assert Stack.of(told) == stack
