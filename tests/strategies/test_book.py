"""Every bundled strategy has a file of its own, which states its formula and inherits a contract."""

from __future__ import annotations

import inspect

import pytest
from book import BOOK, STRATEGIES, find_page, list_contracts, load


def list_strategies(module):
    """Classes of the strategies that the contracts of a module test."""
    return {type(contract.strategy) for contract in list_contracts(module)}


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
