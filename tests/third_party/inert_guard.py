"""A plugin of pytest that runs transformers' own generation tests with a guard attached to every model that generates.

`--inert-guard empty` attaches a guard without strategies, `neutral` one whose strategies stand at their neutral values, so that
everything is prepared and wrapped and nothing changed; `off` attaches none. `--outcomes FILE` keeps how every test ended.
"""

from __future__ import annotations

import functools
import json
import random
import sys
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.generation import GenerationMixin

from lvlm_guard import Guard, InputError, Refused, Stack

STACKS: dict[str, Any] = {"empty": [], "neutral": [{"name": "vcd", "params": {"alpha": 0.0}}]}
MIXIN = "GenerationTesterMixin"
REFUSED = "refused: "
_is_inside: ContextVar[bool] = ContextVar("is_inside", default=False)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    parser.addoption("--inert-guard", choices=("off", *STACKS), default="off")
    parser.addoption("--outcomes", type=Path)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests that come from the mixin of generation tests."""
    kept = [item for item in items if _is_of_mixin(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


def _is_of_mixin(item: pytest.Item) -> bool:
    classes = getattr(getattr(item, "cls", None), "__mro__", ())
    return any(item.name in vars(owner) for owner in classes if owner.__name__ == MIXIN)


@pytest.fixture(autouse=True)
def _same_draws() -> None:
    """Let a test draw the same weights and inputs with and without a guard."""
    for name, module in list(sys.modules.items()):
        if name.endswith("test_modeling_common") and hasattr(module, "global_rng"):
            module.global_rng.seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the state that those tests draw from
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _attached(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attach the guard for as long as a test runs."""
    kind = request.config.getoption("--inert-guard")
    if kind == "off":
        return
    plain, stack = GenerationMixin.generate, Stack.of(STACKS[kind])

    @functools.wraps(plain)
    def generate(model: Any, *args: Any, **kwargs: Any) -> Any:
        if _is_inside.get():
            return plain(model, *args, **kwargs)
        token = _is_inside.set(True)
        try:
            with Guard(model, None, stack).attached():
                return model.generate(*args, **kwargs)
        except (Refused, InputError) as error:
            pytest.skip(f"{REFUSED}{error}")
        finally:
            _is_inside.reset(token)

    monkeypatch.setattr(GenerationMixin, "generate", generate)


class Outcomes:
    """How every test ended.

    Args:
        file: Where it is written.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._outcomes: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the worst phase of a test; of subtests, that of the whole."""
        if report.when == "call" or report.outcome != "passed":
            known = self._outcomes.get(report.nodeid, "passed")
            if known == "passed":
                self._outcomes[report.nodeid] = _describe(report)

    def pytest_sessionfinish(self) -> None:
        """Write everything."""
        self._file.write_text(json.dumps(self._outcomes, indent=1))


def _describe(report: pytest.TestReport) -> str:
    reason = report.longrepr[2] if report.skipped and isinstance(report.longrepr, tuple) else ""
    return reason.removeprefix("Skipped: ") if REFUSED in reason else report.outcome


def pytest_configure(config: pytest.Config) -> None:
    """Keep outcomes where a file is named."""
    if (file := config.getoption("--outcomes")) is not None:
        config.pluginmanager.register(Outcomes(file))
