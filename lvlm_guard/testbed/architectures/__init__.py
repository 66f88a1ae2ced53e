"""The architectures the testbed's model can be trained as."""

from __future__ import annotations

from typing import Any

from lvlm_guard.errors import InputError, nearest
from lvlm_guard.testbed.architectures.architecture import Architecture
from lvlm_guard.testbed.architectures.llava import LLAVA
from lvlm_guard.testbed.architectures.qwen2_vl import QWEN2_VL

ARCHITECTURES: dict[str, Architecture] = {one.name: one for one in (LLAVA, QWEN2_VL)}


def named(name: str) -> Architecture:
    """The architecture of that name.

    Raises:
        InputError: There is none.
    """
    if name not in ARCHITECTURES:
        raise InputError(f"no architecture named {name!r}.{nearest(name, ARCHITECTURES)}")
    return ARCHITECTURES[name]


def of(model: Any) -> Architecture:
    """The architecture of a model, by its config.

    Raises:
        InputError: It is none of the testbed's.
    """
    return named(model.config.model_type)
