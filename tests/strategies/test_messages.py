"""Every error that a bundled strategy raises has one form: who needs what, and what to do about it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import lvlm_guard
from lvlm_guard import GuardError
from lvlm_guard.host.plugins import catalogue

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"
FORM = re.compile(r"'(\w+)' needs [^:]+: [a-z].*[^:]\.( \{\})?")


def errors():
    values = {name: getattr(lvlm_guard, name) for name in lvlm_guard.__all__}
    return {name for name, value in values.items() if isinstance(value, type) and issubclass(value, GuardError)}


def text(message):
    """A message as its source writes it, `{}` for what is filled in."""
    if isinstance(message, ast.Constant):
        return str(message.value)
    assert isinstance(message, ast.JoinedStr), ast.unparse(message)
    parts = (part.value if isinstance(part, ast.Constant) else filled(part) for part in message.values)
    return "".join(parts)


def filled(part):
    return "'name'" if ast.unparse(part.value) == "name" else "{}"


def messages():
    """(module, message) of every raise of one of our errors, in the modules of strategies."""
    names = errors()
    for path in sorted(PLUGINS.glob("lvlm_guard_*/*.py")):
        if path.stem.endswith("_fitter"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and ast.unparse(node.exc.func) in names:
                yield path.stem, text(node.exc.args[0])


def test_messages_say_who_needs_what_and_what_to_do():
    assert len(list(messages())) > 12
    assert [message for _, message in messages() if not FORM.fullmatch(message)] == []


def test_messages_name_a_strategy():
    names = {offer.name for offer in catalogue()} | {"name"}
    assert {FORM.fullmatch(message)[1] for _, message in messages()} <= names


def test_the_form_refuses_others():
    for message in ("dola: none is an earlier layer.", "'dola' needs an earlier layer.", "'dola' needs a: B"):
        assert not FORM.fullmatch(message)
