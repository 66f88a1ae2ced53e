"""The test files of bundled strategies: each has one, in a folder named as its package."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from pathlib import Path
from typing import Any

from lvlm_guard.host.plugins import catalogue
from lvlm_guard.testing import SequenceContract, StrategyContract

BOOK = Path(__file__).resolve().parents[1] / "strategies"
CONTRACTS = (StrategyContract, SequenceContract)
STRATEGIES = {offer.name: offer.strategy for offer in catalogue() if offer.distribution == "lvlm-guard"}

ACTING = {name: strategy for name, strategy in STRATEGIES.items() if not getattr(strategy, "observes", False)}
"""Those that change something."""


def find_page(name: str) -> Path:
    """The file of a strategy: its folder is the package without `lvlm_guard_`."""
    folder = STRATEGIES[name].__module__.split(".")[0].removeprefix("lvlm_guard_")
    return BOOK / folder / f"test_{name}.py"


def load(path: Path) -> Any:
    """Run a test file as a module of its own."""
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[spec.name]
    return module


def list_contracts(module: Any) -> list[Any]:
    """Contracts of a module, with strategies at settings under which they act."""
    classes = [value for name, value in vars(module).items() if inspect.isclass(value) and name.startswith("Test")]
    return [value for value in classes if issubclass(value, CONTRACTS)]
