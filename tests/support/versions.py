"""What the installed transformers lacks: tests of it are skipped, with a reason that names the version."""

from __future__ import annotations

import pytest
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from lvlm_guard.testing.zoo.building import TYPES, Specimen


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
    """Build the tiny model of a type, or skip the test as `need_mapped` does."""
    need_mapped(name)
    return Specimen(name)


def skip(reason: str) -> None:
    """Skip the test, because this transformers has or does something."""
    pytest.skip(f"transformers {transformers.__version__} has {reason}")
