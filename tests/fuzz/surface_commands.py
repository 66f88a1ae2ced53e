"""Command lines: every command and option, with values that are right, odd or wrong.

Left out is what runs for minutes where its options are right, waits for requests, or fetches from a network; `bench run`, `bench cost` and
`testbed show` get small sizes.
"""

import functools
import random
from pathlib import Path
from unittest import mock

import typer
from fuzzing import Attempt, Surface
from typer.testing import CliRunner

from lvlm_guard import loading, testbed
from lvlm_guard.cli import app
from lvlm_guard.errors import GuardError

LEFT_OUT = {
    ("demo",), ("diagnose", "model"), ("diagnose", "profile"), ("fit",), ("remedies", "measure"), ("serve",), ("testbed", "build"),
    ("testbed", "card"), ("testbed", "train"), ("tune",),
}  # fmt: skip
HEAVY = {("bench", "run"), ("bench", "cost")}
VALUES = (
    "", " ", "vcd", "VCD", "vcd+pai", "vcd++", "vdc", "testbed", "Testbed", "0", "1", "-1", "3", "10000000000000000000000",
    "nan", "inf", "1e400", "true", "é" * 50, "x" * 5000, "[bold]", "{0:>9999999999}", "cpu", "CPU", "cuda:99", "cuda:x", "meta",
    "float16", "int8", "scenes", "scenes:count=1", "scenes:count=x", "scenes:split=idd", "pope", "nul\x00", "\ud800", "a\nb",
    "../x.toml", "FOLDER", "FOLDER/none/deep.png", "FOLDER/scene.png", "FOLDER/page.png", "FOLDER/deep.toml", "FOLDER/new.png",
    "llava-1.5-7b", "<image>", "--", "-", "--help", "--json",
)  # fmt: skip
GOOD = {
    "--model": "testbed", "--image": "FOLDER/scene.png", "--prompt": "is there a mug ?", "--stack": "vcd", "--out": "FOLDER/new.png",
    "--max-new-tokens": "1", "--tokens": "2", "--rounds": "1", "--batch": "1", "--count": "1", "--limit": "1", "--device": "cpu",
}  # fmt: skip
SMALL = {("bench", "cost"): ("--tokens", "--rounds", "--batch"), ("bench", "run"): ("--out", "--limit", "--batch")}


def leaves(command, words=()):
    for word, inner in command.commands.items():
        yield from leaves(inner, (*words, word)) if hasattr(inner, "commands") else [((*words, word), inner)]


COMMANDS = {words: command for words, command in leaves(typer.main.get_command(app)) if words not in LEFT_OUT}


@functools.cache
def load_bundled():
    return testbed.load("cpu")


def load(name, device=None, dtype="auto"):
    """Load as the library does, but the bundled model once for all attempts, and nothing from the hub."""
    if name == "testbed" and device in (None, "cpu"):
        return load_bundled()
    if not Path(name[:200].replace("\0", "")).exists() and name.strip() and name != "testbed":
        raise GuardError(f"there is no model {name[:80]!r} in this test, which has no network.")
    return LOAD(name, device, dtype)


LOAD = loading.load


def draw(chance: random.Random, folder: Path) -> Attempt:
    words = chance.choice(list(COMMANDS))
    arguments = [value.replace("FOLDER", str(folder)) for value in draw_arguments(chance, words)]
    return Attempt(f"{words} {arguments!r}"[:300], lambda: run(words, arguments, folder))


def draw_arguments(chance, words):
    arguments = []
    for parameter in COMMANDS[words].params:
        option = parameter.opts[0]
        needed = parameter.required or option in SMALL.get(words, ()) or option in ("--image", "--max-new-tokens")
        for _ in range(chance.choice((0, 1, 1, 2) if chance.random() < 0.3 else (int(needed), int(needed), 1))):
            arguments += draw_option(chance, parameter, words)
    if chance.random() < 0.1:
        arguments.insert(chance.randrange(len(arguments) + 1), chance.choice(("--nothing", "-x", "--stak", "", "more")))
    return arguments


def draw_option(chance, parameter, words):
    option = parameter.opts[0]
    if getattr(parameter, "is_flag", False):
        return [option]
    right = GOOD.get(option, "scenes:count=1" if words == ("bench", "run") else "FOLDER/deep.toml")
    fixed = option in SMALL.get(words, ()) and option != "--out"
    value = right if fixed or chance.random() < 0.5 else chance.choice(VALUES)
    if words == ("bench", "run") and value in ("scenes", "1", "3"):
        value = "scenes:count=1"
    return [option, value] if parameter.param_type_name == "option" else [value]


def run(words, arguments, folder):
    testbed_picture = folder / "scene.png"
    load_scene().save(testbed_picture)
    (folder / "page.png").write_text("<html>")
    (folder / "deep.toml").write_text('[[stack]]\nname = "vcd"\n')
    offline = {
        "load": load,
        "load_config": without_network(LOAD_CONFIG),
        "load_config_values": without_network(LOAD_VALUES),
    }
    with mock.patch.multiple(loading, **offline):
        result = CliRunner().invoke(app, [*words, *arguments])
    check(result)


def without_network(read):
    """Read as the library does, but nothing from the hub."""

    def read_here(name):
        if name != "testbed" and not Path(name[:200].replace("\0", "")).exists():
            raise GuardError(f"there is no model {name[:80]!r} in this test, which has no network.")
        return read(name)

    return read_here


LOAD_CONFIG, LOAD_VALUES = loading.load_config, loading.load_config_values


@functools.cache
def load_scene():
    from lvlm_guard.testbed.world.scenes import scenes  # noqa: PLC0415 - only when it is drawn

    return scenes("counterfactual", 1)[0].picture


def check(result):
    """Pass on what is no ending of a command; the library's own errors are judged by whoever called."""
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code in (0, 1, 2), result.exit_code
    assert "Traceback" not in result.output
    assert result.exit_code == 0 or len(result.output.split()) > 2, "no message"


SURFACE = Surface("commands", draw, attempts=600, slice=25)
