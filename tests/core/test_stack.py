"""Stacks from everything a user may write, and errors that name the path and the nearest name."""

import json
import os
from dataclasses import dataclass
from importlib.metadata import entry_points
from itertools import pairwise
from typing import ClassVar

import pytest
from lvlm_guard_augmentation import Revise
from lvlm_guard_contrastive import M3ID, VCD

from lvlm_guard import Guard, InputError, Stack, StackError, testbed
from lvlm_guard.bench.running.systems import read_stacks
from lvlm_guard.harness.settings import read_stack
from lvlm_guard.host.presets import PRESETS
from lvlm_guard.host.stack import name_stack
from lvlm_guard.strategy.user_functions import call_user_function
from lvlm_guard.testbed.world.scenes import scenes

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


def test_paths_are_text_in_a_stack_that_is_written_down(tmp_path):
    path = tmp_path / "heads.safetensors"
    path.touch()
    stack = Stack.of([{"name": "adhh", "params": {"artefact": str(path)}}])
    plain = json.loads(json.dumps(stack.to_dict()))
    assert plain["stack"][0]["params"]["artefact"] == str(path)
    assert Stack.of(plain) == stack


def test_a_file_that_is_not_there_is_named_when_the_stack_is_built():
    with pytest.raises(StackError, match=r"artefact: there is no such file, got 'none.safetensors'"):
        Stack.of({"name": "nullu", "params": {"artefact": "none.safetensors"}})


@pytest.mark.parametrize("form", ["vti.toml", "vti.yaml"])
def test_paths_in_a_file_are_looked_for_beside_it_and_then_in_the_current_folder(tmp_path, monkeypatch, form):
    text = {
        "vti.toml": '[[stack]]\nname = "vti"\nparams = {artefact = "fitted/vti.safetensors"}\n',
        "vti.yaml": "stack:\n  - {name: vti, params: {artefact: fitted/vti.safetensors}}\n",
    }[form]
    beside, current = tmp_path / "stacks", tmp_path / "current"
    for folder in (beside, current):
        (folder / "fitted").mkdir(parents=True)
    (beside / form).write_text(text)
    monkeypatch.chdir(current)
    with pytest.raises(StackError, match=f"there is no such file, nor one in {beside}"):
        Stack.of(beside / form)
    (current / "fitted/vti.safetensors").touch()
    assert str(Stack.of(beside / form).strategies[0].artefact) == "fitted/vti.safetensors"
    (beside / "fitted/vti.safetensors").touch()
    (found,) = Stack.of(f"../stacks/{form}")
    assert found.artefact == beside.parent / "current/../stacks/fitted/vti.safetensors"
    assert found.artefact.samefile(beside / "fitted/vti.safetensors")


@pytest.mark.parametrize("text", ["vcd+m3id", "vcd + m3id", " vcd +m3id "])
def test_names_joined_by_plus_are_one_stack_everywhere(tmp_path, text):
    wanted = (VCD(), M3ID())
    path = tmp_path / "a.yaml"
    path.write_text(f"stack: {text}")
    assert Stack.of(text).strategies == Stack.of({"stack": text}).strategies == Stack.of(path).strategies == wanted
    assert {name: stack.strategies for name, stack in read_stacks([text]).items()} == {"vcd+m3id": wanted}
    assert read_stack(text).strategies == wanted


@pytest.mark.parametrize("text", ["", "vcd+", "+vcd", "vcd++m3id", "+", " ", "plain+vcd"])
def test_a_name_is_never_guessed(text):
    with pytest.raises(StackError, match=r"leaves out a name|stands alone"):
        Stack.of(text)


def test_plain_is_the_stack_without_strategies():
    assert len(Stack.of("plain")) == len(read_stack("plain")) == 0
    with pytest.raises(StackError, match="names several strategies"):
        Stack.of(["vcd+m3id"])


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 9)}]" for before, name in pairwise("abcdefgh")
)
FILES = {
    "deep.toml": ("stack = " + "[" * 100_000, "nested too deeply"),
    "deep.yaml": ("stack: " + "[" * 5000, "nested too deeply"),
    "nested.yaml": ("stack: " + "[" * 30 + "]" * 30, "nested deeper than 20"),
    "itself.yaml": ("stack: &a [vcd, *a]", "do they hold themselves"),
    "bomb.yaml": (BOMB + "\nstack: *h", "more than 10,000"),
    "list.yaml": (f"{BOMB}".replace("a: &a", "stack: &a", 1), "more than 10,000"),
    "merge.yaml": ("stack:\n- &a {name: vcd}\n- {<<: *a}", "is no|unknown|text|undefined|expected|key"),
    "twice.yaml": ("stack: [vcd]\nstack: [m3id]", r"line 2, column 1.*'stack' comes twice"),
    "twice.toml": ('stack = ["vcd"]\nstack = ["m3id"]', "Cannot overwrite"),
    "date.toml": (
        '[[stack]]\nname = "vcd"\nparams = {alpha = 2020-01-01}',
        r"stack\[0\].params: alpha: .*valid number",
    ),
    "date.yaml": ("stack: [{name: vcd, params: {alpha: 2020-01-01}}]", r"alpha: .*valid number, got '2020-01-01'"),
    "bool.toml": ('[[stack]]\nname = "vcd"\nparams = {alpha = true}', "alpha: .*valid number, got True"),
    "huge.yaml": (f"stack: [{{name: vcd, params: {{seed: {'9' * 5000}}}}}]", "line 1, column .*is no int"),
    "huge.toml": (f'[[stack]]\nname = "vcd"\nparams = {{seed = {"9" * 400}}}', "seed: .*less than"),
    "inf.toml": ('[[stack]]\nname = "vcd"\nparams = {alpha = inf}', "alpha: .*finite"),
    "nul.yaml": ("stack: [vc\0d]", "cannot be read"),
    "tab.yaml": ("stack:\n\t- vcd", "line 2, column 1"),
    "tag.yaml": ("stack: !!python/object/apply:os.system [ls]", "line 1.*constructor"),
    "int.yaml": ("stack: !!int ''", "line 1.*is no int"),
    "key.yaml": ("stack: [{1: vcd}]", "a key must be text, got 1"),
    "big.yaml": ("stack: [vcd]\n" + "# " + "x" * 300_000, "at most 256 KiB"),
    "nothing.yaml": ("stack:", "expected a list"),
    "empty.yaml": ("", "top-level list"),
}


@pytest.mark.parametrize("name", FILES)
def test_bad_files_end_in_an_error_with_file_and_place(tmp_path, name):
    text, words = FILES[name]
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(StackError, match=rf"(?s){name}.*({words})"):
        Stack.of(path)


def test_what_is_no_regular_file_of_utf8_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "wide.yaml").write_text("stack: [vcd]", encoding="utf-16")
    for name, words in (
        ("pipe.yaml", "regular"),
        ("folder.yaml", "regular"),
        ("wide.yaml", "UTF-8"),
        ("a\0.yaml", "null"),
    ):
        with pytest.raises(StackError, match=words):
            Stack.of(tmp_path / name)


def test_a_byte_order_mark_and_numbers_of_yaml_12_are_read(tmp_path):
    path = tmp_path / "A.YAML"
    path.write_text("stack: [{name: olm, params: {gap: 1e-3, yes: [Yes, yes], no: [No, no]}}]", encoding="utf-8-sig")
    (strategy,) = Stack.of(path)
    assert (strategy.gap, strategy.yes, strategy.no) == (1e-3, ("Yes", "yes"), ("No", "no"))


def test_python_values_that_hold_themselves_are_refused():
    loop = []
    loop.append(loop)
    for value in (loop, {"name": "vcd", "params": {"alpha": loop}}, "vcd\0", "\ud800", {"stack": [loop]}):
        with pytest.raises(StackError):
            Stack.of(value)


REVISE = {"name": "revise", "params": {"splitter": "os:system"}}


@pytest.mark.parametrize("value", [REVISE, [Revise(splitter="os:system")], {"stack": [REVISE]}])
def test_a_stack_imports_functions_only_by_leave(value, monkeypatch):
    with pytest.raises(StackError, match=r"allow=\['os:system'\].*--allow os:system.*LVLM_GUARD_ALLOW=os:system"):
        Stack.of(value)
    with pytest.raises(StackError, match="may not be imported"):
        Stack.of(value, allow=["os:remove"])
    allowed = Stack.of(value, allow={"os:system"})
    assert allowed.strategies == (Revise(splitter="os:system"),)
    assert Stack.of([*allowed]) == allowed
    with pytest.raises(StackError, match="may not be imported"):
        Stack.of(json.loads(json.dumps(allowed.to_dict())))
    monkeypatch.setenv("LVLM_GUARD_ALLOW", "os:remove, os:system")
    assert Stack.of(value) == allowed


def test_functions_pass_as_values_and_installed_ones_by_name(tmp_path):
    assert Stack.of([Revise(splitter=len)]).strategies[0].splitter is len
    offered = {point.value for point in entry_points(group="lvlm_guard.callables")}
    path = tmp_path / "a.yaml"
    for name in offered:
        path.write_text(f"stack: [{{name: rank, params: {{scorer: '{name}'}}}}]")
        assert Stack.read(path).strategies[0].scorer == name
    path.write_text("stack: [{name: rank, params: {scorer: 'json:loads'}}]")
    with pytest.raises(StackError, match=r"a\.yaml: .*may not be imported"):
        Stack.read(path)
    assert Stack.read(path, allow=["json:loads"]).strategies[0].scorer == "json:loads"


def test_a_name_that_nobody_allowed_is_not_imported_by_a_call_either():
    with pytest.raises(InputError, match="may not be imported"):
        call_user_function("os:getcwd", what="splitter", timeout=1.0)


@pytest.mark.parametrize("allow", ["os:system", 3, [len], None])
def test_what_is_allowed_is_a_list_of_names(allow):
    with pytest.raises(StackError, match="allow: expected a list"):
        Stack.of("vcd", allow=allow)


@pytest.mark.parametrize(
    "text", ["{:>9000000000}", "{0.__class__}", "{} {}", "{} {x}", "{{}}", "{}" + "x" * 10_000, "none"]
)
def test_templates_have_one_place_and_no_other_brace(text):
    for name, parameter in (("revise", "question"), ("evidence", "sentence")):
        with pytest.raises(StackError, match=parameter):
            Stack.of({"name": name, "params": {parameter: text}})


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_its_strategies_at_published_values_by_any_road(name, tmp_path):
    stack = Stack.of("+".join(PRESETS[name].strategies))
    assert Stack.of(name) == stack == Stack.of({"stack": name})
    assert len(stack) == len(PRESETS[name].strategies)
    assert name_stack(name) == name


@pytest.mark.parametrize("value", ["thorough+vsv", "vsv+thorough", ["thorough"], [{"name": "thorough"}]], ids=str)
def test_a_preset_stands_alone(value):
    with pytest.raises(StackError, match=r"whole stack.*write 'vcd\+pai\+revise'"):
        Stack.of(value)


def test_no_strategy_may_be_called_like_a_preset():
    @dataclass(frozen=True)
    class Light:
        name: ClassVar[str] = "light"

    with pytest.raises(StackError, match="light"):
        Stack.of([Light()])


def test_the_thorough_preset_runs_on_the_bundled_model():
    model, processor = testbed.load()
    guard = Guard(model, processor, "thorough")
    picture = scenes("counterfactual", 1)[0].picture
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "describe this image ."}]
    guard.chat([{"role": "user", "content": content}], max_new_tokens=12, do_sample=False)
    assert {one.name for one in guard.report.strategies if one.had_effect} >= {"vcd", "pai"}
