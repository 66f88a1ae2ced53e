"""Who may import whom, read off the sources: plugins on lvlm_guard, lvlm_guard on the kernels, never the other way."""

from __future__ import annotations

import ast
import graphlib
import re
import sys
from dataclasses import dataclass
from importlib.metadata import requires
from pathlib import Path

import pytest

import lvlm_guard
from lvlm_guard import fields, fitting

CHECKOUT = Path(__file__).resolve().parents[2]
ROOTS = (CHECKOUT, CHECKOUT / "kernels", CHECKOUT / "plugins")
OUTER_ROOMS = (
    "bench", "bulk", "cli", "diagnosis", "engines", "export", "fitting", "harness", "loading", "serving", "testbed", "testing",
    "tuning", "verification",
)  # fmt: skip
KNOWS_TRANSFORMERS = (
    "forward",
    "anatomy",
    "request.requests",
    "request.picture_loading",
    "engines",
    "testing",
    "testbed",
    "cli",
    "loading",
    "verification",
    "serving.row_processors",
)
PUBLIC = {
    "lvlm_guard": lvlm_guard.__all__,
    "lvlm_guard.fields": fields.__all__,
    "lvlm_guard.fitting": fitting.__all__,
}
BASE = (
    "anatomy",
    "cache_names",
    "deprecation",
    "dtype_speed",
    "errors",
    "extras",
    "files",
    "outputs",
    "protocols",
    "user_warnings",
)
FLOORS = (("guard",), ("call",), ("forward", "request"), ("arithmetic", "fields", "host"), ("strategy",), BASE)


@dataclass(frozen=True)
class Import:
    """One imported name: `module` is the module it comes from, `name` is empty for a plain import."""

    module: str
    name: str
    type_checking: bool

    @property
    def package(self) -> str:
        return self.module.split(".")[0]


def sources(package: str) -> dict[str, Path]:
    """Modules of an import package by dotted name."""
    root = next(root for root in ROOTS if (root / package / "__init__.py").exists())
    return {dotted(path.relative_to(root)): path for path in sorted((root / package).rglob("*.py"))}


def dotted(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(module: str, path: Path) -> list[Import]:
    """Every import of a module, those inside functions too."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return list(walk(ast.parse(path.read_text(encoding="utf-8")), package))


def walk(node: ast.AST, package: str, type_checking: bool = False):
    if isinstance(node, ast.Import):
        yield from (Import(one.name, "", type_checking) for one in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield from (Import(origin(node, package), one.name, type_checking) for one in node.names)
    for child in ast.iter_child_nodes(node):
        hidden = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and child in node.body
        yield from walk(child, package, type_checking or hidden)


def origin(node: ast.ImportFrom, package: str) -> str:
    """Absolute name of the module that a `from` import names, relative or not."""
    parents = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
    return ".".join([*parents, node.module] if node.module else parents)


PLUGINS = sorted(path.parent.name for path in (CHECKOUT / "plugins").glob("*/__init__.py"))
CORE = {
    name: path for name, path in sources("lvlm_guard").items() if name.split(".")[1:2] not in [[r] for r in OUTER_ROOMS]
}


def everything() -> dict[str, Path]:
    packages = ("lvlm_guard", "lvlm_guard_kernels", *PLUGINS)
    return {name: path for package in packages for name, path in sources(package).items()}


def breaches(modules: dict[str, Path], forbidden) -> list[str]:
    """Imports that `forbidden(importing module, import)` objects to, one line each."""
    return [
        f"{module} imports {one.module}{'.' * bool(one.name)}{one.name}"
        for module, path in modules.items()
        for one in imports(module, path)
        if forbidden(module, one)
    ]


def test_the_reader_of_imports_sees_what_it_should(tmp_path):
    source = tmp_path / "reader.py"
    source.write_text(
        "import a.b\nfrom .c import d\nfrom .. import e\ndef f():\n    from g import h\n"
        "if TYPE_CHECKING:\n    import i\nelse:\n    import j\n",
        encoding="utf-8",
    )
    seen = [(one.module, one.name, one.type_checking) for one in imports("top.sub.reader", source)]
    assert seen == [
        ("a.b", "", False), ("top.sub.c", "d", False), ("top", "e", False), ("g", "h", False), ("i", "", True),
        ("j", "", False),
    ]  # fmt: skip


@pytest.mark.parametrize("plugin", PLUGINS)
def test_plugins_import_public_names_only(plugin):
    def forbidden(module, one):
        if one.package == "lvlm_guard":
            return one.name not in PUBLIC.get(one.module, ())
        return one.package in {"transformers", "triton", "lvlm_guard_kernels"} or (
            one.package in PLUGINS and one.package != plugin
        )

    assert breaches(sources(plugin), forbidden) == []


def test_kernels_know_neither_strategies_nor_models():
    outside = {"lvlm_guard", "transformers", *PLUGINS}
    assert breaches(sources("lvlm_guard_kernels"), lambda _, one: one.package in outside) == []


def test_only_arithmetic_imports_the_kernels():
    def forbidden(module, one):
        return one.package == "lvlm_guard_kernels" and not within(module, "lvlm_guard.arithmetic")

    assert breaches(sources("lvlm_guard"), forbidden) == []


def test_few_rooms_know_transformers():
    def forbidden(module, one):
        return one.package == "transformers" and not any(
            within(module, f"lvlm_guard.{room}") for room in KNOWS_TRANSFORMERS
        )

    assert breaches(sources("lvlm_guard"), forbidden) == []


def test_the_core_imports_no_outer_room():
    def forbidden(_, one):
        target = f"{one.module}.{one.name}".split(".")
        return target[0] == "lvlm_guard" and target[1] in OUTER_ROOMS

    assert breaches(CORE, forbidden) == []


def within(module: str, room: str) -> bool:
    return module == room or module.startswith(f"{room}.")


def test_every_floor_of_the_core_imports_only_floors_below():
    floor = {room: index for index, rooms in enumerate(FLOORS) for room in rooms}
    assert {name.split(".")[1] for name in CORE if name != "lvlm_guard"} == set(floor)

    def forbidden(module, one):
        target = f"{one.module}.{one.name}".split(".")
        if module == "lvlm_guard" or target[0] != "lvlm_guard" or len(target) < 2 or target[1] not in floor:
            return False
        here, there = module.split(".")[1], target[1]
        return here != there and here not in BASE and floor[there] <= floor[here]

    assert breaches(CORE, forbidden) == []


def test_the_core_imports_no_plugin():
    assert breaches(CORE, lambda _, one: one.package in PLUGINS) == []


def test_nothing_imports_triton_outside_the_kernels():
    others = {name: path for name, path in everything().items() if not name.startswith("lvlm_guard_kernels")}
    assert breaches(others, lambda _, one: one.package == "triton") == []


@pytest.mark.parametrize("package", ["lvlm_guard", "lvlm_guard_kernels", *PLUGINS])
def test_there_is_no_import_cycle(package):
    modules = sources(package)
    graph = {
        module: {target(one, modules) for one in imports(module, path) if not one.type_checking} - {None, module}
        for module, path in modules.items()
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


def test_there_is_no_circle_between_rooms():
    """A room is a folder; a file that lies beside folders is a room of its own, and `__init__.py` is a room's door."""
    modules = sources("lvlm_guard")
    rooms: dict[str, set[str]] = {}
    for module, path in modules.items():
        if path.name == "__init__.py" and is_divided(module, modules):
            continue
        found = {target(one, modules) for one in imports(module, path) if not one.type_checking} - {None, "lvlm_guard"}
        rooms.setdefault(room(module, modules), set()).update(room(other, modules) for other in found)
    try:
        graphlib.TopologicalSorter({name: others - {name} for name, others in rooms.items()}).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


def room(module: str, modules: dict[str, Path]) -> str:
    folder = module.rpartition(".")[0]
    whole = modules[module].name == "__init__.py" or folder == "lvlm_guard" or is_divided(folder, modules)
    return module if whole else folder


def is_divided(folder: str, modules: dict[str, Path]) -> bool:
    """Whether a folder holds folders."""
    return any(path.name == "__init__.py" and name.startswith(f"{folder}.") for name, path in modules.items())


def target(one: Import, modules: dict[str, Path]) -> str | None:
    """The module of ours that an import runs; None for others."""
    inner = f"{one.module}.{one.name}"
    return inner if inner in modules else one.module if one.module in modules else None


GUESTS = {
    "lvlm_guard.bulk.parquet": {"pyarrow"},
    "lvlm_guard.bulk.ray_actors": {"ray"},
    "lvlm_guard.cli.serving": {"fastapi", "starlette", "uvicorn", "prometheus_client"},
    "lvlm_guard.engines.vllm": {"vllm"},
    "lvlm_guard.export": {"gguf"},
    "lvlm_guard.harness": {"lmms_eval", "lm_eval"},
    "lvlm_guard.serving": {"fastapi", "prometheus_client", "ray", "starlette", "uvicorn"},
    "lvlm_guard.testbed.collage": {"gguf", "networkx", "peft"},
    "lvlm_guard.testing.devices": {"accelerate"},
}
"""What extras bring, by the module or room that may import it."""


def test_everything_but_the_standard_library_is_declared():
    """What torch and transformers themselves require counts as declared."""
    lines = [line for line in requires("lvlm-guard") or () if "extra ==" not in line]
    declared = {re.match(r"[\w.-]+", line).group().lower() for line in lines} | {
        "safetensors",
        "tokenizers",
        "networkx",
    }
    named_otherwise = {"PIL": "pillow", "yaml": "pyyaml", "typing_extensions": "typing-extensions"}
    ours = {"lvlm_guard", "lvlm_guard_kernels", *PLUGINS}

    def forbidden(module, one):
        guests = {name for place, names in GUESTS.items() if within(module, place) for name in names}
        known = one.package in ours or one.package in {*sys.stdlib_module_names, "tomllib", "triton", *guests}
        return not known and named_otherwise.get(one.package, one.package) not in declared

    assert breaches(everything(), forbidden) == []
