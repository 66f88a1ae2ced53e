"""Every bundled strategy has a file of its own, which states its formula and inherits a contract."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from pathlib import Path

import pytest

from lvlm_guard.host.plugins import catalogue
from lvlm_guard.testing import SequenceContract, StrategyContract

BOOK = Path(__file__).resolve().parent
CONTRACTS = (StrategyContract, SequenceContract)
STRATEGIES = {offer.name: offer.strategy for offer in catalogue() if offer.distribution == "lvlm-guard"}


def find_page(name):
    """The file of a strategy: its folder is the package without `lvlm_guard_`."""
    folder = STRATEGIES[name].__module__.split(".")[0].removeprefix("lvlm_guard_")
    return BOOK / folder / f"test_{name}.py"


def load(path):
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[spec.name]
    return module


def list_strategies(module):
    """Classes of the strategies that the contracts of a module test."""
    classes = [value for name, value in vars(module).items() if inspect.isclass(value) and name.startswith("Test")]
    return {type(value.strategy) for value in classes if issubclass(value, CONTRACTS)}


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_has_a_page_with_its_formula_and_a_contract(name):
    page = find_page(name)
    assert page.is_file(), f"write {page.relative_to(BOOK)}"
    module = load(page)
    assert len(inspect.getdoc(module)) > 20, f"{page.name}: state the formula in the docstring"
    assert STRATEGIES[name] in list_strategies(module), f"{page.name}: subclass a contract with strategy = {name}"


def test_no_page_is_about_no_strategy():
    pages = {page for page in BOOK.glob("*/test_*.py") if page.stem != "test_shared"}
    assert pages == {find_page(name) for name in STRATEGIES}


def test_a_page_without_a_contract_is_noticed(tmp_path):
    page = tmp_path / "test_vcd.py"
    page.write_text('"""A page about nothing."""\n\n\nclass TestVCD:\n    strategy = None\n', encoding="utf-8")
    assert list_strategies(load(page)) == set()
