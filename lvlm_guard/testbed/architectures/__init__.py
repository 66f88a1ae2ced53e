"""The architectures the testbed's model can be trained as."""

from __future__ import annotations

from typing import Any

from lvlm_guard.errors import InputError, nearest
from lvlm_guard.testbed.architectures.architecture import Architecture
from lvlm_guard.testbed.architectures.llava import LLAVA
from lvlm_guard.testbed.architectures.qwen2_vl import QWEN2_VL

ARCHITECTURES: dict[str, Architecture] = {built.name: built for built in (LLAVA, QWEN2_VL)}


def find_architecture(name: str) -> Architecture:
    """Return the architecture of that name.

    Raises:
        InputError: There is none.
    """
    if name not in ARCHITECTURES:
        raise InputError(f"no architecture named {name!r}.{nearest(name, ARCHITECTURES)}")
    return ARCHITECTURES[name]


def architecture_of(model: Any) -> Architecture:
    """Return the architecture of a model, by its config.

    Raises:
        InputError: It is none of the testbed's.
    """
    return find_architecture(model.config.model_type)
