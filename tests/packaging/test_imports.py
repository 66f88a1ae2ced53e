"""What `import lvlm_guard` costs and brings along, the public names, and plugins that cannot be loaded."""

from __future__ import annotations

import importlib
import inspect
import json
import sys
import types
from importlib.metadata import EntryPoint

import pytest
from lvlm_guard_contrastive import VCD

import lvlm_guard
from lvlm_guard import GuardWarning, PluginError
from lvlm_guard.host.plugins import discover

BUDGET = 0.05
PUBLIC = [
    "Artefact",
    "AttentionCapture",
    "AttentionEdit",
    "Bias",
    "Branch",
    "CallResults",
    "Change",
    "Contrast",
    "Conversation",
    "DecodingLoop",
    "Depth",
    "Exchange",
    "ExecutorName",
    "FeatureEdit",
    "FitRefused",
    "Forward",
    "Forwards",
    "Generation",
    "Guard",
    "GuardError",
    "GuardWarning",
    "HiddenEdit",
    "InputEdit",
    "InputError",
    "Insert",
    "KernelsRefused",
    "LayerDivergence",
    "Look",
    "Mix",
    "ModeRefused",
    "ModelInfo",
    "ModelRefused",
    "NoEffectWarning",
    "NonFiniteLogits",
    "Operation",
    "Origin",
    "PictureEdit",
    "PictureEdits",
    "PictureSources",
    "PixelEdit",
    "Place",
    "Plausible",
    "PluginError",
    "PluginRejected",
    "ProcessorNeeded",
    "Project",
    "Prompt",
    "PromptStates",
    "Readout",
    "Refused",
    "Replace",
    "Report",
    "RequestReport",
    "Restrict",
    "Revision",
    "Rows",
    "Search",
    "Services",
    "Shift",
    "Source",
    "Stack",
    "StackError",
    "Statistics",
    "StrategyRefused",
    "StrategyReport",
    "Term",
    "TokenEdit",
    "Turn",
    "UncompiledWarning",
    "Vectors",
    "View",
    "Weight",
    "WithoutImage",
    "check_returned",
    "hookimpl",
]

COST = """
import json, sys, time
import torch, transformers

def once():
    before = set(sys.modules)
    started = time.perf_counter()
    import lvlm_guard
    seconds = time.perf_counter() - started
    brought = sorted(set(sys.modules) - before)
    for name in brought:
        del sys.modules[name]
    return seconds, brought

runs = [once() for _ in range(5)]
import lvlm_guard
transformers.LlavaForConditionalGeneration, transformers.GenerationMixin  # what every user of generate has loaded
before = set(sys.modules)
for name in lvlm_guard.__all__:
    getattr(lvlm_guard, name)
used = sorted(set(sys.modules) - before)
print(json.dumps({"seconds": min(seconds for seconds, _ in runs), "import": runs[0][1], "use": used}))
"""


@pytest.fixture(scope="module")
def fresh(quietly, tmp_path_factory):
    """What a fresh interpreter sees that has already paid for torch and transformers."""
    return json.loads(quietly(sys.executable, "-c", COST, cwd=tmp_path_factory.mktemp("fresh")).splitlines()[-1])


def test_the_import_is_cheap(fresh):
    print(f"import lvlm_guard: {fresh['seconds'] * 1e3:.2f} ms")
    assert fresh["seconds"] < BUDGET


def test_the_import_brings_nothing_heavy(fresh):
    heavy = ("triton", "torch._dynamo", "torch._inductor", "pydantic", "lvlm_guard_")
    assert [name for name in fresh["import"] if name.startswith(heavy)] == []
    assert "lvlm_guard" in fresh["import"]


def test_the_public_names_bring_neither_triton_nor_plugins(fresh):
    assert [name for name in fresh["use"] if name.startswith("triton") or is_plugin(name)] == []
    assert "lvlm_guard.guard" in fresh["use"]


DISCOVERY = """
import json, sys
from lvlm_guard.host.plugins import catalogue
names = [offer.name for offer in catalogue()]
print(json.dumps({"names": names, "modules": sorted(sys.modules)}))
"""


def test_the_discovery_of_strategies_imports_no_fitter(quietly, tmp_path):
    seen = json.loads(quietly(sys.executable, "-c", DISCOVERY, cwd=tmp_path).splitlines()[-1])
    assert {"adhh", "nullu", "vti"} <= set(seen["names"])
    assert [name for name in seen["modules"] if name.endswith("_fitter")] == []
    assert "lvlm_guard.fitting" not in seen["modules"]
    assert "lvlm_guard_steering" in seen["modules"]


def is_plugin(module: str) -> bool:
    return module.startswith("lvlm_guard_") and not module.startswith("lvlm_guard_kernels")


def test_the_public_names_are_these():
    assert lvlm_guard.__all__ == PUBLIC
    assert sorted(PUBLIC) == PUBLIC
    assert [name for name in PUBLIC if name not in dir(lvlm_guard)] == []


def test_every_public_name_is_there_and_explained():
    values = {name: getattr(lvlm_guard, name) for name in lvlm_guard.__all__}
    assert [name for name, value in values.items() if inspect.isclass(value) and not inspect.getdoc(value)] == []


def test_the_lazy_names_are_those_that_type_checkers_see():
    source = inspect.getsource(lvlm_guard)
    for name in lvlm_guard.__all__:
        owner = lvlm_guard._OWNER[name]
        assert f"from lvlm_guard.{owner} import {name} as {name}\n" in source
        assert name in vars(importlib.import_module(f"lvlm_guard.{owner}"))


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Gurad'"):
        lvlm_guard.Gurad  # noqa: B018 - the access is the test


def point(name: str, value: str) -> EntryPoint:
    return EntryPoint(name=name, value=value, group="lvlm_guard")


@pytest.fixture
def offering(monkeypatch):
    """Put a module into reach of entry points."""

    def add(name, register_strategies):
        module = types.ModuleType(name)
        module.register_strategies = lvlm_guard.hookimpl(register_strategies)
        monkeypatch.setitem(sys.modules, name, module)
        return point(name, name)

    return add


def raising(register):
    raise RuntimeError("no licence")


def offering_a_class_that_is_none(register):
    register(dict)


def test_a_plugin_that_cannot_be_imported_is_reported_and_skipped():
    good, broken = point("contrastive", "lvlm_guard_contrastive"), point("absent", "no_such_package_anywhere")
    with pytest.warns(GuardWarning, match=r"'absent' of unknown distribution was skipped: ModuleNotFoundError"):
        found = discover([broken, good])
    assert "vcd" in found.offers
    assert [(one.entry_point, one.distribution) for one in found.broken] == [("absent", "unknown distribution")]
    with pytest.raises(PluginError, match=r"'fog'.*Not loaded: .*no_such_package_anywhere"):
        found.find("fog")


@pytest.mark.parametrize(
    ("register_strategies", "reason"),
    [(raising, "no licence"), (offering_a_class_that_is_none, "frozen dataclass")],
)
def test_a_plugin_that_fails_while_it_registers_is_reported_and_skipped(offering, register_strategies, reason):
    good = point("contrastive", "lvlm_guard_contrastive")
    with pytest.warns(GuardWarning, match=reason):
        found = discover([offering("lvlm_guard_failing", register_strategies), good])
    assert "vcd" in found.offers
    assert len(found.broken) == 1


def test_a_plugin_that_fails_half_way_offers_nothing(offering):
    def half(register):
        register(VCD)
        raise RuntimeError("half way")

    with pytest.warns(GuardWarning, match="half way"):
        found = discover([offering("lvlm_guard_half", half)])
    assert list(found) == []
