"""The parts of a module are remembered, and looked up again once any of them was replaced."""

import copy
import gc
import weakref

import pytest
from torch import nn

from lvlm_guard import anatomy


def build():
    shared = nn.Linear(2, 2)
    return nn.Sequential(nn.Sequential(shared, nn.ReLU()), shared, nn.Sequential(nn.Sequential()))


def replace(module):
    module[0][1] = nn.GELU()


def replace_and_free(module):
    """The new part may lie at the address of the old one."""
    module[0][1] = None
    gc.collect()
    module[0][1] = nn.ReLU()


def add(module):
    module[2][0].append(nn.Identity())


def remove(module):
    del module[2][0]


def swap(module):
    module[0], module[2] = module[2], module[0]


@pytest.mark.parametrize("change", [replace, replace_and_free, add, remove, swap])
def test_parts_are_those_of_now(change):
    module = build()
    assert anatomy.list_parts(module) == list(module.modules())
    before = anatomy.list_parts(module)
    change(module)
    assert anatomy.list_parts(module) == list(module.modules())
    assert anatomy.list_parts(module) != before


def test_parts_are_walked_once(monkeypatch):
    module, walks = build(), []
    walk = nn.Module.modules
    monkeypatch.setattr(nn.Module, "modules", lambda self: walks.append(1) or walk(self))
    for _ in range(3):
        anatomy.list_parts(module)
    assert walks == [1]
    anatomy.list_parts(copy.deepcopy(module))
    assert walks == [1, 1]


def test_nothing_keeps_a_module_alive():
    module = build()
    anatomy.list_parts(module)
    reference = weakref.ref(module)
    del module
    gc.collect()
    assert reference() is None
