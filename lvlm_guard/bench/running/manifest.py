"""What a run is, as plain values: enough to repeat it, and to recognise a folder that holds another run."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import lvlm_guard
from lvlm_guard.bench.items import Item
from lvlm_guard.bench.running import store
from lvlm_guard.bench.running.edits import Digests, digest_whole
from lvlm_guard.bench.running.picture_check import LeftOut
from lvlm_guard.bench.running.stored_manifest import REFUSE, UNRECORDED
from lvlm_guard.bench.running.systems import GREEDY, SAMPLING, System
from lvlm_guard.bench.suite import Problem, Suite
from lvlm_guard.deprecation import moved_names

PACKAGES = ("torch", "transformers", "numpy", "pillow")
VOLATILE = ("_name_or_path", "transformers_version", "torch_dtype", "dtype")
"""Entries of a config that say nothing about the model."""

DECODING: Mapping[str, Mapping[str, Any]] = {
    GREEDY: {"do_sample": False, "num_beams": 1},
    SAMPLING: {"do_sample": True, "num_beams": 1, "temperature": 1.0, "top_k": 0, "top_p": 1.0},
}
"""Arguments of generate; sampling draws from the model's own distribution, nothing cut off."""

PROBLEMS = 20
"""Unusable rows that a manifest lists; all of them are counted."""


@dataclass(frozen=True)
class SuiteChoice:
    """A suite and how its answers are read.

    Args:
        suite: The suite.
        parser: One of its parsers.
        arguments: What it was constructed with.
    """

    suite: Suite
    parser: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunPlan:
    """What a run does.

    Args:
        suites: Suites by the name they have in the run.
        systems: Who answers.
        without: Controls that were switched off.
        data: Folder of the suites' files.
        limit: At most so many items of each suite; None is all of them.
        batch: Most rows of a call.
        seed: Of the sampling.
        missing_pictures: "refuse" to run where a picture is missing or broken, or "skip" its items and count them.
        looks: Whether questions about one picture go on from a look at it.
    """

    suites: Mapping[str, SuiteChoice]
    systems: Sequence[System]
    without: tuple[str, ...] = ()
    data: Path | None = None
    limit: int | None = None
    batch: int = 16
    seed: int = 0
    missing_pictures: str = REFUSE
    looks: bool = False


@dataclass(frozen=True)
class Gathered:
    """The content of the suites of a plan.

    Args:
        items: Items by suite, the limit applied, those without a usable picture left out.
        problems: Rows that could not be used, by suite.
        left_out: Items without a usable picture, by suite.
        pictures: SHA-256 of the files of their pictures, by suite; none of a suite that does not say where its files are.
        files: SHA-256 of the files that its measures read besides, by suite.
    """

    items: Mapping[str, Sequence[Item]]
    problems: Mapping[str, Sequence[Problem]]
    left_out: Mapping[str, LeftOut]
    pictures: Mapping[str, Digests] = field(default_factory=dict)
    files: Mapping[str, Digests] = field(default_factory=dict)


def describe(
    plan: RunPlan,
    model: Any,
    model_id: str,
    gathered: Gathered,
) -> dict[str, Any]:
    """Build the manifest of a run."""
    return {
        "format": store.FORMAT,
        "model": {"id": model_id, **model_identity(model)},
        "seed": plan.seed,
        "batch": plan.batch,
        "limit": plan.limit,
        "missing_pictures": plan.missing_pictures,
        **({"looks": True} if plan.looks else {}),
        "data": None if plan.data is None else str(plan.data.resolve()),
        "generation": {
            **{name: dict(settings) for name, settings in DECODING.items()},
            "defaults": _plain(getattr(model, "generation_config", None)),
        },
        "systems": {system.name: system.to_dict() for system in plan.systems},
        "without": sorted(plan.without),
        "suites": {name: _suite(name, chosen, gathered) for name, chosen in plan.suites.items()},
        "versions": versions(),
        "hardware": hardware(model.device),
    }


def describe_model(manifest: Mapping[str, Any]) -> str:
    """Name the model of a run and its architecture."""
    return f"{manifest['model']['id']} ({manifest['model']['class']})"


def describe_left_out(description: Mapping[str, Any]) -> str | None:
    """Describe the items of a suite that were left out for want of their pictures; None where there are none."""
    left_out = description.get("left_out", {"items": 0})
    if not left_out["items"]:
        return None
    pictures = "1 picture is" if left_out["pictures"] == 1 else f"{left_out['pictures']} pictures are"
    items = "1 item" if left_out["items"] == 1 else f"{left_out['items']} items"
    return f"{items}, since {pictures} missing or broken: {left_out['first'][0]}"


def _suite(name: str, chosen: SuiteChoice, gathered: Gathered) -> dict[str, Any]:
    items, problems = gathered.items[name], gathered.problems[name]
    return {
        "name": chosen.suite.name,
        "title": chosen.suite.title,
        "arguments": {**_recorded(chosen.suite), **chosen.arguments},
        "parser": chosen.parser,
        "levels": list(chosen.suite.levels),
        "licence": chosen.suite.licence,
        "homepage": chosen.suite.homepage,
        "items": len(items),
        "pictures": len({item.image for item in items if item.image is not None}),
        "without_picture": sum(item.image is None for item in items),
        **store.digest(items),
        "pictures_sha256": digest_whole(gathered.pictures.get(name, {})),
        "files_sha256": dict(gathered.files.get(name, {})),
        "left_out": gathered.left_out[name].to_dict(),
        "unusable_rows": len(problems),
        "problems": [f"{problem.file}:{problem.line}: {problem.what}" for problem in problems[:PROBLEMS]],
    }


def _recorded(suite: Suite) -> dict[str, Any]:
    """Return the arguments that are written whether they were given or not."""
    return {name: getattr(suite, name) for name in UNRECORDED.get(suite.name, {}) if hasattr(suite, name)}


def model_identity(model: Any) -> dict[str, Any]:
    """Identify a model by its class, a hash of its config, and a digest of a few weights of every tensor."""
    entries = {name: value for name, value in _plain(model.config).items() if name not in VOLATILE}
    weights = hashlib.sha256()
    for name, tensor in model.named_parameters():
        weights.update(f"{name}{tuple(tensor.shape)}".encode())
        weights.update(tensor.detach().flatten()[:8].float().cpu().numpy().tobytes())
    return {
        "class": type(model).__name__,
        "config": hashlib.sha256(json.dumps(entries, sort_keys=True, default=str).encode()).hexdigest()[:16],
        "weights": weights.hexdigest()[:16],
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": getattr(model.config, "_attn_implementation", None),
    }


def versions() -> dict[str, str]:
    """Return the versions of the packages that answers depend on."""
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"lvlm_guard": lvlm_guard.__version__, "python": platform.python_version(), **packages}


def hardware(device: torch.device) -> dict[str, Any]:
    """Describe the machine that the model runs on."""
    accelerator = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "device": device.type,
        "accelerator": accelerator,
        "system": platform.system(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }


def _plain(config: Any) -> dict[str, Any]:
    """Turn a config of transformers into plain values; its defaults are left out where it can tell them apart."""
    for name in ("to_diff_dict", "to_dict"):
        if callable(convert := getattr(config, name, None)):
            return {key: value for key, value in convert().items() if key not in VOLATILE}
    return {}


__getattr__ = moved_names(
    __name__,
    {
        "Plan": "lvlm_guard.bench.running.manifest:RunPlan",
        "Chosen": "lvlm_guard.bench.running.manifest:SuiteChoice",
        "told_model": "lvlm_guard.bench.running.manifest:describe_model",
    },
)
