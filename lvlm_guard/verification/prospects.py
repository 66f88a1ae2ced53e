"""What is expected to work on a model, by its config files alone."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lvlm_guard import anatomy, loading
from lvlm_guard.testing.zoo.cells import MechanismCell
from lvlm_guard.testing.zoo.table import load_table
from lvlm_guard.verification.checks import Unproven
from lvlm_guard.verification.obstacles import Obstacle, find_obstacles, is_known, takes_pictures
from lvlm_guard.verification.structure import ModelPart, build_without_weights, find_parts

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")
FILES_WITH_TEMPLATES = ("tokenizer_config.json", "processor_config.json")
NEAREST = 3
"""Types that are named where a type is not in the table."""


@dataclass(frozen=True)
class Prospects:
    """What is expected of a model.

    Args:
        model: As it was named.
        type: Model type of its config.
        architecture: Class that the config names; empty where it names none.
        cells: What was measured on tiny models of the type, by mechanism; empty where the type is not in the table.
        versions: Packages that the cells were measured with.
        nearest: Types with a similar name, where there are no cells.
        parts: What strategies need of a model.
        obstacles: What changes how it can be guarded.
        unbuilt: Why no model was built to look at; empty where one was.
    """

    model: str
    type: str
    architecture: str
    cells: Mapping[str, MechanismCell]
    versions: Mapping[str, str]
    nearest: tuple[str, ...]
    parts: tuple[ModelPart, ...]
    obstacles: tuple[Obstacle, ...]
    unbuilt: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            **values,
            "versions": dict(self.versions),
            "cells": {mechanism: cell.to_dict() for mechanism, cell in self.cells.items()},
            "nearest": list(self.nearest),
            "parts": [{**dataclasses.asdict(part), "is_there": part.is_there} for part in self.parts],
            "obstacles": [dataclasses.asdict(obstacle) for obstacle in self.obstacles],
        }


def examine(name: str) -> Prospects:
    """Say what is expected to work on a model; no weights are read, and no code of the checkpoint is run.

    Args:
        name: `testbed`, a local folder with a config, or a hub id, of which only config files are fetched.

    Raises:
        InputError: There is no such model, or its config cannot be read.
    """
    values = loading.load_config_values(name)
    config = loading.load_config(name) if is_known(values) else None
    values = values if config is None else _complete(values, config)
    kind = values["model_type"]
    table = load_table()
    entry = table.get(kind)
    parts, unbuilt = _examine_structure(config, values)
    architectures = values.get("architectures")
    return Prospects(
        name,
        kind,
        str(architectures[0]) if isinstance(architectures, list) and architectures else "",
        entry.cells if entry else {},
        entry.versions if entry else {},
        () if entry and entry.cells else tuple(difflib.get_close_matches(kind, [*table], NEAREST, 0.5)),
        (*parts, _find_image_token(config), _find_processor(name), _find_template(name)),
        tuple(find_obstacles(values)),
        unbuilt or (entry.skipped if entry else ""),
    )


def _complete(values: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """Return the contents of `config.json` with what its class fills in."""
    text = config.get_text_config(decoder=True)
    inner = {} if text is config else {"text_config": text.to_dict()}
    return {**config.to_dict(), **inner, "model_type": values["model_type"]}


def _examine_structure(config: Any, values: Mapping[str, Any]) -> tuple[list[ModelPart], str]:
    """Return the parts of the model without weights, or why there is none."""
    if config is None or not takes_pictures(values):
        return [], "No model of this type can be built here."
    try:
        return find_parts(build_without_weights(config)), ""
    except Unproven as error:
        return [], str(error)


def _find_image_token(config: Any) -> ModelPart:
    token = None if config is None else anatomy.image_token_id(config)
    return ModelPart(
        "image token",
        "" if token is None else f"id {token}",
        "branches without the image, attention to the image",
        "The model may hold its image beside the prompt. Pass the processor to Guard, and run lvlm-guard verify.",
    )


def _find_processor(name: str) -> ModelPart:
    files = [file for file in PROCESSOR_FILES if loading.find_file(name, file) is not None]
    return ModelPart(
        "processor",
        ", ".join(files),
        "guard.inputs, guard.chat, strategies that write text or edit pictures",
        "Save the model's own processor into the folder: processor.save_pretrained(folder).",
    )


def _find_template(name: str) -> ModelPart:
    files = [file for file in TEMPLATE_FILES if loading.find_file(name, file) is not None]
    files += [file for file in FILES_WITH_TEMPLATES if _holds_template(name, file)]
    return ModelPart(
        "chat template",
        ", ".join(files),
        "guard.chat, lvlm-guard generate",
        "Write prompts with guard.inputs(images=..., text=...), or set processor.chat_template.",
    )


def _holds_template(name: str, file: str) -> bool:
    path = loading.find_file(name, file)
    if path is None:
        return False
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(values, dict) and bool(values.get("chat_template"))
