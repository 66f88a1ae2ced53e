"""What the installed transformers lacks: tests of it are skipped, with a reason that names the version."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import NoReturn

import pytest
import transformers
from torch import nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from lvlm_guard import GuardError, ModelRefused
from lvlm_guard.testing.zoo.building import TYPES, Specimen

KEPT = "is kept before it is edited"
"""Said where a vision tower keeps what its layers return before hooks see it, so that edits of it are refused."""


def need(*model_types: str) -> None:
    """Skip the test where a model type is missing."""
    for name in model_types:
        if name not in CONFIG_MAPPING:
            skip(f"no {name}")


def need_mapped(name: str) -> None:
    """Skip the test where transformers does not map a model type from image and text to text."""
    if name not in TYPES:
        skip(f"no {name} among the models from image and text to text")


def specimen_of(name: str) -> Specimen:
    """Build the tiny model of a type, or skip the test as `need_mapped` does, or where its own config is broken."""
    need_mapped(name)
    with contextlib.suppress(ValueError):  # of configs that are made of others alone
        size = getattr(CONFIG_MAPPING[name]().get_text_config(decoder=True), "vocab_size", 0)
        if isinstance(size, dict):
            skip(f"a config of {name} with a vocabulary of {size}")
    return Specimen(name)


def has_interface(model: object) -> bool:
    """Whether the code of a model runs attention through transformers' interface, which edits of attention need."""
    return hasattr(sys.modules[type(model).__module__], "ALL_ATTENTION_FUNCTIONS")


def need_threads(model: nn.Module) -> None:
    """Skip the test where plain generate puts forwards into the parts of a model while it runs, so that threads disturb each other.

    It leaves each part with its own forward, by which a model that ran is known.
    """
    if any(getattr(vars(part).get("forward"), "__self__", None) is part for part in model.modules()):
        skip("a plain generate that answers otherwise in threads")


@contextlib.contextmanager
def editing_towers() -> Iterator[None]:
    """Skip the test where a vision tower keeps what its layers return before hooks see it, so that edits of it are refused."""
    try:
        yield
    except ModelRefused as error:
        if KEPT not in str(error):
            raise
        skip(f"a tower it keeps layers of: {error}")


def skip(reason: str) -> NoReturn:
    """Skip the test, because this transformers has or does something."""
    pytest.skip(f"transformers {transformers.__version__} has {reason}")


@contextlib.contextmanager
def skip_without_torchvision() -> Iterator[None]:
    """Skip the test where this transformers reads pictures of a model with torchvision alone, which is not installed."""
    try:
        yield
    except (ImportError, GuardError) as error:
        if "requires the Torchvision library" in str(error):
            skip("no processor of these pictures without torchvision")
        raise
