"""How commands end: repeated options, interrupts, closed pipes, narrow alphabets, and what cannot be loaded."""

import io
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import typer
from command_line import run_command, run_refused
from PIL import Image
from typer.testing import CliRunner

from lvlm_guard import loading, testbed
from lvlm_guard.bench.running.cost_model import TARGETS
from lvlm_guard.cli import answering, app, main, options, planning
from lvlm_guard.cli.program import Command
from lvlm_guard.errors import InputError
from lvlm_guard.forward.executors.executor import ExecutorName
from lvlm_guard.guard import DEFAULT_STACK, Guard
from lvlm_guard.host.stack import Stack
from lvlm_guard.testing import tiny

README = Path(__file__).parents[2] / "README.md"


def leaves(command, words=()):
    for word, inner in command.commands.items():
        yield from leaves(inner, (*words, word)) if hasattr(inner, "commands") else [((*words, word), inner)]


LEAVES = dict(leaves(typer.main.get_command(app)))
SINGLE = [
    (words, option.opts[0])
    for words, command in LEAVES.items()
    for option in command.params
    if option.param_type_name == "option" and not option.multiple and not option.is_flag
]


def run_process(*arguments, **options):
    program = [sys.executable, "-c", "from lvlm_guard.cli import main; main()", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run(program, text=True, check=False, **pipes)


@pytest.fixture
def picture(tmp_path):
    run_command("testbed", "show", "--one", tmp_path / "scene.png")
    return tmp_path / "scene.png"


def ask(monkeypatch, capsys, picture, *arguments):
    given = {"--model": "testbed", "--image": picture, "--prompt": "is there a mug ?", "--max-new-tokens": 2}
    given |= dict(zip(arguments[::2], arguments[1::2], strict=True))
    pairs = [word for pair in given.items() for word in pair]
    return run_refused(monkeypatch, capsys, "generate", *pairs)


def test_every_command_refuses_repeated_options():
    assert len(SINGLE) > 40
    assert [words for words, command in LEAVES.items() if not isinstance(command, Command)] == []


@pytest.mark.parametrize(("words", "option"), SINGLE, ids=lambda value: value if isinstance(value, str) else None)
def test_an_option_with_one_value_is_refused_where_it_stands_twice(words, option):
    result = CliRunner().invoke(app, [*words, option, "1", option, "1"], env={"COLUMNS": "200"})
    assert result.exit_code == 2, result.output
    assert f"Invalid value for '{option}'" in result.output
    assert ("vcd+pai" if option == "--stack" else "it takes one value") in result.output


@pytest.mark.parametrize(("words", "option"), SINGLE)
def test_an_option_is_no_value_of_the_option_before_it(words, option):
    result = CliRunner().invoke(app, [*words, option, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 2, result.output
    assert f"Invalid value for '{option}': its value is missing" in result.output


def test_switches_and_lists_may_be_repeated():
    assert run_command("strategies", "vcd", "--json", "--json").startswith("{")
    printed = run_command("plan", "--model", "llava-1.5-7b", "--hardware", "h200", "--hardware", "a100")
    assert "H200" in printed
    assert "A100" in printed


def test_defaults_and_choices_are_those_of_the_library():
    assert options.DEFAULT_STACK == DEFAULT_STACK
    assert options.ExecutorName == ExecutorName
    assert list(TARGETS) == list(planning.MACHINES)


def test_help_needs_no_torch():
    code = "import sys; import lvlm_guard.cli; print({'torch', 'transformers', 'numpy', 'PIL'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--prompt", " "), "--prompt is empty"),
        (("--image", "gone.png"), "there is no such file"),
        (("--model", ""), "names no model"),
        (("--model", "Testbed"), "Did you mean 'testbed'?"),
        (("--model", "some/hub-name"), "Name a local folder"),
        (("--device", ""), "is no device"),
        (("--device", "tpu"), "is no device"),
        (("--device", "cuda:99"), "there is no device 'cuda:99'"),
        (("--device", "cpu:3"), "there is no device 'cpu:3'"),
        (("--prompt", "<image> is there a mug ?"), "--prompt holds '<image>'"),
    ],
)
def test_generate_says_what_to_do(monkeypatch, capsys, picture, arguments, words):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert words in ask(monkeypatch, capsys, picture, *arguments)


def test_generate_without_a_picture_names_the_option(monkeypatch, capsys):
    monkeypatch.setattr(loading, "load", lambda *_: pytest.fail("loaded"))
    assert "--image FILE" in run_refused(
        monkeypatch, capsys, "generate", "--model", "testbed", "--prompt", "is there a mug ?"
    )


def test_files_that_are_no_whole_picture_are_refused_before_a_model_is_loaded(monkeypatch, capsys, tmp_path, picture):
    monkeypatch.setattr(loading, "load", lambda *_: pytest.fail("loaded"))
    contents = {"page.png": b"<html>", "empty.png": b"", "cut.png": picture.read_bytes()[:200]}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        assert "cannot be read" in ask(monkeypatch, capsys, picture, "--image", tmp_path / name)
    assert "it is a folder" in ask(monkeypatch, capsys, picture, "--image", tmp_path)


def test_a_picture_of_a_size_that_the_model_cannot_take(monkeypatch, capsys, tmp_path, picture):
    model = saved(tmp_path / "strict", lambda _, processor: setattr(processor.image_processor, "do_resize", False))
    Image.new("RGB", (500, 400)).save(tmp_path / "large.png")
    said = ask(monkeypatch, capsys, picture, "--image", tmp_path / "large.png", "--model", model)
    assert "InputError: Plain generate cannot answer this" in said
    assert "Try another picture" in said


def saved(folder, change=lambda model, processor: None):
    model, processor = testbed.load()
    change(model, processor)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_a_model_without_a_chat_template(monkeypatch, capsys, tmp_path, picture):
    processor = testbed.load()[1]
    processor.chat_template = None
    monkeypatch.setattr(loading, "load", lambda *_: (testbed.load()[0], processor))
    assert "chat template" in ask(monkeypatch, capsys, picture)


def test_a_processor_that_does_not_know_the_patch_size(tmp_path):
    model, processor = testbed.load()
    processor.patch_size = None
    with pytest.raises(InputError, match=r"processor\.patch_size = \d+\. Set that and save it"):
        loading._check_processor("folder", processor, model.config)


def test_folders_that_hold_no_whole_vision_language_model(monkeypatch, capsys, tmp_path, picture):
    saved(tmp_path / "bare")
    for path in (tmp_path / "bare").glob("*.safetensors"):
        path.unlink()
    text_only = tiny("llava")[0].config.text_config
    text_only.save_pretrained(tmp_path / "text")
    for name in ("bare", "text"):
        said = ask(monkeypatch, capsys, picture, "--model", tmp_path / name)
        assert "cannot be loaded as a vision-language model" in said
        assert "Get its files again" in said
        assert len(said) < 1600
    assert "is a file" in ask(monkeypatch, capsys, picture, "--model", picture)


@pytest.fixture
def interruptible():
    """Let an interrupt reach the test: where the suite runs in the background of a shell, it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_is_one_line_and_exit_code_130(monkeypatch, picture, interruptible):
    monkeypatch.setattr(Guard, "inputs", lambda *_, **__: signal.raise_signal(signal.SIGINT))
    result = CliRunner().invoke(
        app, ["generate", "--model", "testbed", "--image", str(picture), "--prompt", "is there a mug ?"]
    )
    assert result.exit_code == 130
    assert result.stderr.strip() == "Interrupted."


def test_a_reader_that_leaves_is_not_worth_a_word():
    reading, writing = os.pipe()
    os.close(reading)
    ended = run_process("--help", stdout=writing)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (1, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no full device")
def test_a_full_disk_is_a_message():
    with Path("/dev/full").open("w") as full:
        ended = run_process("--help", stdout=full)
    assert ended.returncode == 2
    assert ended.stderr == "OSError: No space left on device.\n"


def test_a_terminal_of_few_letters_and_a_home_that_is_not_there(tmp_path):
    odd = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C", "HOME": str(tmp_path / "gone"), "PYTHONUTF8": "0"}
    ended = run_process("--help", env=odd)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.isascii()


@pytest.mark.parametrize("arguments", [("strategies",), ("strategies", "vcd"), ("stack", "validate", "é.toml")])
def test_no_letter_is_too_odd_for_a_terminal(monkeypatch, arguments):
    written = io.BytesIO()
    narrow = io.TextIOWrapper(written, encoding="ascii", write_through=True)
    monkeypatch.setattr(sys, "stdout", narrow)
    monkeypatch.setattr(sys, "stderr", narrow)
    monkeypatch.setattr(sys, "argv", ["lvlm-guard", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == (2 if "validate" in arguments else 0)
    assert len(written.getvalue()) > 40


def test_one_scene_is_written_as_the_model_sees_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "scene.png: 1 scene of counterfactual" in run_command("testbed", "show", "--one", "scene.png")
    with Image.open("scene.png") as scene:
        assert scene.size == (64, 64)
    result = CliRunner().invoke(app, ["testbed", "show", "--one", "a.png", "--out", "b.png"])
    assert isinstance(result.exception, InputError)


def test_the_first_commands_of_the_readme_run_in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"^```bash run\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    for line in block.splitlines():
        program, *arguments = shlex.split(line, comments=True)
        assert program == "lvlm-guard"
        printed = run_command(*arguments)
    assert "plain" in printed
    assert "vcd" in printed


def test_a_stack_is_handed_on_as_it_is_written(monkeypatch, picture):
    """What `a+b` means is the stack's to say; no command reads it in its own way."""
    seen = []
    monkeypatch.setattr(Stack, "of", classmethod(lambda cls, value, **_: seen.append(value) or cls()))
    monkeypatch.setattr(answering.loading, "load", lambda *_: testbed.load())
    run_command("generate", "--model", "testbed", "--image", picture, "--prompt", "is there a mug ?", "--max-new-tokens",
                2, "--stack", "vcd+pai")  # fmt: skip
    run_command("plan", "--model", "llava-1.5-7b", "--stack", "vcd+pai")
    assert seen[0] == seen[-1] == "vcd+pai"


def test_an_argument_that_no_program_can_get_is_refused():
    result = CliRunner().invoke(app, ["strategies", "nul\0"])
    assert result.exit_code == 2
    assert "NUL character" in result.output
