"""Building the model in a folder: parts fetched, put together, taught by the shipped delta or by training."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lvlm_guard.errors import InputError
from lvlm_guard.files import exists, is_file, is_folder
from lvlm_guard.testbed.collage.assembly import assemble
from lvlm_guard.testbed.collage.delta import Delta, apply_delta, read_delta
from lvlm_guard.testbed.collage.export import CONFIG, export
from lvlm_guard.testbed.collage.folders import ready_folder
from lvlm_guard.testbed.collage.licences import LICENCES_FILE, PARTS, licences
from lvlm_guard.testbed.collage.model_parts import Packages, fetch_packages, opened
from lvlm_guard.testbed.collage.parts import Announce
from lvlm_guard.testbed.collage.training.plan import SeeingPlan
from lvlm_guard.testbed.collage.training.progress import CHECKPOINT
from lvlm_guard.testbed.collage.training.train import teach
from lvlm_guard.testbed.collage.world.picture_parts import fetch_pictures, open_pictures
from lvlm_guard.testbed.collage.world.splits import RENDERING
from lvlm_guard.testbed.errors import TestbedError
from lvlm_guard.testbed.files import check_folder, clear_failure, write_whole

SHIPPED = Path(__file__).parent / "delta"
DELTA = "delta.safetensors"
MANIFEST = "build.json"
"""In a built folder, and beside a delta: what it was made of."""

_ROOM = 400_000_000
"""Bytes that a build needs in its folder: the model, and a draft of its largest file."""


@dataclass(frozen=True)
class BuildOrder:
    """What to build.

    Args:
        out: The folder of the finished model, made if its parent is there.
        train: Train instead of applying the shipped delta.
        parts: The folder of the parts; None is the usual one.
        plan: How to train.
    """

    out: Path
    train: bool = False
    parts: Path | None = None
    plan: SeeingPlan = field(default_factory=SeeingPlan)


def build(order: BuildOrder, announce: Announce = print) -> Path:
    """Build the model in a folder, which is complete afterwards or has no config.

    What is fetched is announced first. Stopped half-way, the same order goes on: parts that are there are not fetched again,
    and a training resumes from its last checkpoint.

    Returns:
        The folder.

    Raises:
        InputError: The folder cannot be used, or a package that is needed is not installed.
        TestbedError: A part cannot be fetched or is not what it should be, there is no space, or the delta does not fit.
    """
    _check(order)
    announce(
        f"The collage model is put together from {len(PARTS)} parts that others publish; what is missing is fetched:"
    )
    for part in PARTS:
        announce(f"  {part}")
    folder = ready_folder(order.parts)
    packages = fetch_packages(folder, announce)
    fetch_pictures(folder, announce)
    with clear_failure(order.out):
        order.out.mkdir(exist_ok=True)
    delta, manifest = _learn(order, packages, folder, announce) if order.train else _read_shipped()
    announce("Putting the parts together")
    finish(packages, delta, manifest, order.out)
    return order.out


def finish(packages: Packages, delta: Delta, manifest: Mapping[str, Any], out: Path) -> None:
    """Assemble the model, apply a delta, and write it into a folder that is there.

    Raises:
        TestbedError: A part cannot be read, the delta does not fit, or there is no space.
    """
    with opened(packages) as weights:
        model, processor = assemble(weights.language, weights.vision)
    apply_delta(model, delta)
    texts = {LICENCES_FILE: licences(), MANIFEST: json.dumps(manifest, indent=2) + "\n"}
    export(model, processor, out, texts)


def _check(order: BuildOrder) -> None:
    """Refuse what cannot end well before anything is fetched."""
    check_folder(order.out, "the folder of the model")
    if exists(order.out / CONFIG):
        raise InputError(f"{order.out} holds a model already. Name another folder, or delete it first.")
    if is_folder(order.out) and not is_file(order.out / CHECKPOINT) and any(order.out.iterdir()):
        raise InputError(f"{order.out} is not empty. Name another folder.")
    needed = ["gguf", *(["peft"] if order.train else [])]
    absent = [name for name in needed if importlib.util.find_spec(name) is None]
    if absent:
        raise InputError(
            f"building the collage model needs the package {' and '.join(absent)}, which is not installed. Install the "
            "extra: pip install 'lvlm-guard[collage]'"
        )
    if not order.train:
        _read_shipped()
    place = order.out if is_folder(order.out) else order.out.parent
    free = shutil.disk_usage(place).free
    if free < _ROOM:
        raise TestbedError(
            f"the model needs {_ROOM / 1e6:.0f} MB, but {place} has room for {free / 1e6:.0f} MB. Make room or name another "
            "folder."
        )


def _read_shipped() -> tuple[Delta, dict[str, Any]]:
    """Return the delta that comes with the package and its manifest, checked against the parts it was made for.

    Raises:
        TestbedError: It is not there, cannot be read, or was made for other parts.
    """
    delta = read_delta(SHIPPED / DELTA)
    try:
        manifest: dict[str, Any] = json.loads((SHIPPED / MANIFEST).read_text(encoding="utf-8"))
        made_for = dict(manifest["parts"])
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise TestbedError(f"{SHIPPED / MANIFEST} cannot be read. Reinstall lvlm_guard.") from problem
    if made_for != checksums():
        raise TestbedError("the shipped delta was made for other versions of the parts. Reinstall lvlm_guard.")
    return delta, manifest


def checksums() -> dict[str, str]:
    """Return the checksum of every part, by name and version."""
    return {f"{part.name} {part.version}": part.checksum for part in PARTS}


def _learn(order: BuildOrder, packages: Packages, folder: Path, announce: Announce) -> tuple[Delta, dict[str, Any]]:
    """Train in the folder of the model, and leave the delta there as well."""
    with opened(packages) as weights:
        model, processor = assemble(weights.language, weights.vision)
    announce(f"Training: {order.plan.steps} steps. Stopped half-way, the same command resumes.")
    pictures = open_pictures(RENDERING["train"], folder)
    delta, figures = teach(model, processor, pictures, order.plan, order.out)
    manifest = describe(order.plan, figures, delta)
    delta.write(order.out / DELTA)
    write_whole(order.out / f"{Path(DELTA).stem}.json", (json.dumps(manifest, indent=2) + "\n").encode("utf-8"))
    return delta, manifest


def describe(plan: SeeingPlan, figures: Mapping[str, Any], delta: Delta) -> dict[str, Any]:
    """Return what a delta was made of and with."""
    return {
        "parts": checksums(),
        "plan": asdict(plan),
        "taught_values": sum(value.numel() for value in _tensors(delta)),
        "exam": dict(figures),
    }


def _tensors(delta: Delta) -> Sequence[Any]:
    return [*delta.changes.values(), *delta.projector.values(), delta.places]
