"""Every surface that the modules beside this file draw misuse of: each `surface_*.py` has one, called `SURFACE`."""

import importlib.util
import resource
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
EXTRA_MEMORY = 6 * 2**30


def load_surfaces():
    surfaces = []
    for path in sorted(HERE.glob("surface_*.py")):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        surfaces.append(module.SURFACE)
    return surfaces


def pytest_generate_tests(metafunc):
    if "surface" in metafunc.fixturenames:
        metafunc.parametrize("surface", load_surfaces(), ids=lambda surface: surface.name)


@pytest.fixture
def bounded_memory():
    """Let an attempt that asks for very much memory fail instead of the machine."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + EXTRA_MEMORY, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
