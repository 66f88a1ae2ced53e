"""`docs/errors.md` names every class, and quotes the messages that the library raises."""

from __future__ import annotations

import copy
import inspect
import re
import warnings
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from types import SimpleNamespace

import pytest
import torch
from lvlm_guard_evidence.calibration import fit_mixing

from lvlm_guard import Guard, Plausible, Stack, errors, hookimpl
from lvlm_guard.host.plugins import catalogue, check_strategy, discover
from lvlm_guard.testing import StrategyContract

CLASSES = {
    name: value
    for name, value in vars(errors).items()
    if inspect.isclass(value) and issubclass(value, BaseException) and value.__module__ == errors.__name__
}


@pytest.fixture(scope="module")
def page(docs):
    return (docs / "errors.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def rows(page):
    """Meaning, message and advice by class."""
    cells = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \| (.*?) \|$", page, re.MULTILINE)
    return {name: (meaning, message.strip("`"), advice) for name, meaning, message, advice in cells}


@dataclass(frozen=True)
class Mine:
    @hookimpl
    def term(self, gen):
        return []


class Unspecified(StrategyContract):
    strategy = SimpleNamespace(name="a_strategy")


def generate(names, stack="vcd", **changes):
    inputs = {name: value for name, value in (names["inputs"] | changes).items() if value is not None}
    return Guard(names["model"], stack=stack).generate(**inputs, max_new_tokens=2)


def request_fast_kernels(names):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LVLM_GUARD_KERNELS", "fast")
        generate(names)


def compile_module(names):
    model = copy.deepcopy(names["model"])
    model.compile(backend="eager")
    generate({**names, "model": model}, stack="vsv")


CAUSES = {
    "GuardError": lambda names: Unspecified()._at(1.0),
    "InputError": lambda names: Plausible(2),
    "StackError": lambda names: Stack.of({"name": "vcd", "params": {"alpa": 1.0}}),
    "ProcessorNeeded": lambda names: Guard(names["model"]).inputs(text="What is this?"),
    "PluginError": lambda names: catalogue().find("m3ids"),
    "PluginRejected": lambda names: check_strategy(Mine),
    "StrategyRefused": lambda names: generate(names, pixel_values=None),
    "ModelRefused": lambda names: Guard(torch.nn.Linear(2, 2)),
    "ModeRefused": lambda names: generate(names, prefill_chunk_size=4),
    "FitRefused": lambda names: fit_mixing([]),
    "KernelsRefused": request_fast_kernels,
    "NonFiniteLogits": lambda names: generate(names, pixel_values=names["inputs"]["pixel_values"] * torch.nan),
    "GuardWarning": lambda names: discover([EntryPoint("absent", "no_such_package_anywhere", "lvlm_guard")]),
    "NoEffectWarning": lambda names: generate(names, stack={"name": "vcd", "params": {"alpha": 0.0}}),
    "UncompiledWarning": compile_module,
}


def test_every_class_has_a_row_with_advice(rows):
    assert set(rows) == set(CLASSES)
    assert [name for name, cells in rows.items() if not all(cells)] == []


def test_the_tree_is_the_one_in_the_source(page):
    tree = errors.__doc__.split("\n\n", 1)[1].strip()
    assert tree in page


@pytest.mark.parametrize("name", sorted(set(CLASSES) - {"Refused"}))
def test_the_quoted_message_is_raised(name, rows, names):
    warnings.simplefilter("error")
    with pytest.raises(CLASSES[name]) as caught:
        CAUSES[name](names)
    assert type(caught.value) is CLASSES[name]
    assert str(caught.value).startswith(rows[name][1])
