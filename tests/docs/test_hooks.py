"""`docs/reference/hooks.md` says what the code says: every signature, every field, every default."""

from __future__ import annotations

import dataclasses
import inspect
import re

import pytest

import lvlm_guard
from lvlm_guard import fields, fitting
from lvlm_guard.fitting import Demonstration, Fitted, Fitter, LabelledObject, LabelledPicture, LabelledPictures
from lvlm_guard.strategy import fields as strategy_fields
from lvlm_guard.strategy.branches import TokenEdit
from lvlm_guard.strategy.forward import Forward
from lvlm_guard.strategy.generation import Generation
from lvlm_guard.strategy.hookspecs import Discovery, Strategy, hook_names
from lvlm_guard.strategy.prompt import ModelInfo, Prompt
from lvlm_guard.strategy.rows import Rows
from lvlm_guard.strategy.terms import Statistics, Term

HOOKS = {name: vars(space)[name] for space in (Discovery, Strategy) for name in hook_names(space)}
EDITS = (
    lvlm_guard.InputEdit,
    lvlm_guard.Branch,
    lvlm_guard.AttentionEdit,
    lvlm_guard.AttentionCapture,
    lvlm_guard.HiddenEdit,
    lvlm_guard.Turn,
    lvlm_guard.Project,
    lvlm_guard.Shift,
    lvlm_guard.Readout,
    lvlm_guard.Search,
    lvlm_guard.Revision,
)
FITTING = (Fitter, Demonstration, LabelledObject, LabelledPicture, LabelledPictures, Fitted)
VALUES = (
    *FITTING,
    *EDITS,
    *TokenEdit.__args__,
    *Term.__args__,
    Generation,
    Prompt,
    ModelInfo,
    Forward,
    lvlm_guard.PromptStates,
)
PAIRS = [(value, field) for value in VALUES for field in dataclasses.fields(value)]
MEMBERS = [
    (owner, name)
    for owner in (Generation, Rows, Statistics, lvlm_guard.View, lvlm_guard.DecodingLoop)
    for name, member in vars(owner).items()
    if not name.startswith("_")
    and (callable(member) or isinstance(member, property))
    and not (member.__doc__ or "").startswith("Deprecated")
]


@pytest.fixture(scope="module")
def sections(docs):
    """Text below each heading of the third level."""
    text = (docs / "reference" / "hooks.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL))


def signature(name: str) -> str:
    return f"def {name}{inspect.signature(HOOKS[name])}: ...".replace("'", "")


def row(field: dataclasses.Field) -> str:
    """How the table of a value begins its row for a field."""
    kind = str(field.type).replace(" | ", " \\| ")
    return f"| `{field.name}` | `{kind}` | {default(field)} |"


def default(field: dataclasses.Field) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return f"`{field.default_factory.__name__}()`"
    return "required" if field.default is dataclasses.MISSING else f"`{field.default!r}`"


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_stands_there_with_its_exact_signature(sections, name):
    assert name in sections, f"docs/reference/hooks.md has no heading '### {name}'"
    assert f"```python\n{signature(name)}\n```" in sections[name], f"write: {signature(name)}"


@pytest.mark.parametrize("name", HOOKS)
def test_the_overview_has_every_hook(sections, docs, name):
    overview = (docs / "reference" / "hooks.md").read_text(encoding="utf-8")
    assert re.search(rf"^\| \[`{name}`\]\(#{name}\) \|", overview, re.MULTILINE), f"the overview has no row for {name}"


def test_no_hook_is_invented(sections):
    values = {value.__name__ for value in VALUES} | {"Rows", "Statistics", "View", "DecodingLoop"}
    assert set(sections) == set(HOOKS) | values


def test_every_type_for_parameters_stands_there(docs):
    page = (docs / "reference" / "hooks.md").read_text(encoding="utf-8")
    section = page.partition("### Types for parameters")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == list(vars_in_order())


def vars_in_order():
    return (name for name in vars(strategy_fields) if name in fields.__all__)


@pytest.mark.parametrize(("value", "field"), PAIRS, ids=lambda value: getattr(value, "__name__", None) or value.name)
def test_a_field_stands_there_with_type_and_default(sections, value, field):
    assert row(field) in sections[value.__name__], f"under '### {value.__name__}' write: {row(field)}"


@pytest.mark.parametrize("value", VALUES, ids=lambda value: value.__name__)
def test_no_field_is_invented(sections, value):
    listed = re.findall(r"^\| `(\w+)` \| `.*` \| (?:required|`[^`]*`) \|", sections[value.__name__], re.MULTILINE)
    assert listed == [field.name for field in dataclasses.fields(value)]


@pytest.mark.parametrize(("owner", "name"), MEMBERS)
def test_a_member_stands_there(sections, owner, name):
    assert f"| `{name}` |" in sections[owner.__name__]


def test_the_public_names_of_fitting_stand_there(sections):
    functions = [name for name in fitting.__all__ if inspect.isfunction(getattr(fitting, name))]
    assert len(functions) > 5
    for name in functions:
        assert f"`{name}(" in sections["register_fitters"]
