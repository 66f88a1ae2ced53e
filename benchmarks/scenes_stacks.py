"""The stacks that are compared in a world, and what they need fitted: on training and calibration scenes of it, of the same model."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from measuring import write_at_once
from worlds import SCENES, World

from lvlm_guard import InputError, Stack, fitting
from lvlm_guard.bench.running import systems
from lvlm_guard.errors import FitRefused, nearest
from lvlm_guard.host.fitters import fitter_catalogue
from lvlm_guard.host.plugins import catalogue
from lvlm_guard.strategy.artefacts import Artefact
from lvlm_guard.strategy.fitters import LabelledPictures

DISTRIBUTION = "lvlm-guard"
DEMONSTRATIONS = 50
REVISED = 240
"""Calibration scenes whose captions fit the thresholds of `revise`."""

LABELLED, JUDGED = 2200, 600
"""Habit-free scenes that a head is fitted on, and calibration scenes that its weights are fitted on."""

FITTED: Mapping[str, Sequence[str]] = {
    "revise_fitted": ("revise",),
    "patch_evidence+revise_fitted": ("patch_evidence", "revise"),
    "vdd+patch_evidence": ("vdd", "patch_evidence"),
}
"""Stacks beyond single strategies at published settings. Here `revise` has fitted thresholds."""

PARAMETERS: Mapping[str, Mapping[str, Any]] = {"gated": {"strategies": [{"name": "vdd", "params": {}}]}}
"""What strategies are given that work on nothing without: `gated` gates `vdd`."""

LEFT_OUT: Mapping[str, str] = {
    "evidence": "it says what a source of evidence says, and there is none",
    "doubt": "it scores answers and changes none",
}
"""Why strategies are compared in no world, by name."""

REFUSED = "refused.json"
"""In the folder of artefacts: why a strategy could not be fitted."""

OPTIONAL = ("revise",)
"""Strategies that work as published without what can be fitted for them."""


def stacks(
    model: Any, processor: Any, folder: Path, only: Collection[str] = (), world: World = SCENES
) -> dict[str, Stack]:
    """Every bundled strategy alone, at published settings, and the stacks of `FITTED`.

    Args:
        model: The model.
        processor: Its processor.
        folder: What has to be fitted is fitted into it once.
        only: Names of the stacks to keep; none keeps all.
        world: Whose scenes are fitted on.

    Returns:
        By name; without those for which something could not be fitted.

    Raises:
        InputError: A name of `only` that no stack has.
    """
    offers = [offer.name for offer in catalogue() if offer.distribution == DISTRIBUTION]
    passed_over = {*systems.CONTROLS, *LEFT_OUT, *world.left_out}
    parts = {name: (name,) for name in offers if name not in passed_over} | dict(FITTED)
    for name in only:
        if name not in parts:
            raise InputError(f"no stack is called {name!r}.{nearest(name, parts)}")
    chosen = {name: strategies for name, strategies in parts.items() if not only or name in only}
    kinds = {kind for name in chosen for kind in _used(name, chosen[name])}
    fitted, refused = fit_all(model, processor, folder, kinds, world)
    artefacts = {kind: {"artefact": str(path)} for kind, path in fitted.items()}
    parameters = {**PARAMETERS, **artefacts, **world.parameters}
    return {
        name: Stack.of([_entry(strategy, name, parameters) for strategy in strategies])
        for name, strategies in chosen.items()
        if refused.keys().isdisjoint(_used(name, strategies))
    }


def _used(stack: str, strategies: Sequence[str]) -> list[str]:
    """The strategies of a stack that take what was fitted for them, if anything was."""
    return [strategy for strategy in strategies if not _is_published(strategy, stack)]


def _entry(strategy: str, stack: str, parameters: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {"name": strategy, "params": {} if _is_published(strategy, stack) else dict(parameters.get(strategy, {}))}


def _is_published(strategy: str, stack: str) -> bool:
    """Whether a strategy stands alone and works as published, though something can be fitted for it."""
    return strategy == stack and strategy in OPTIONAL


def fit_all(
    model: Any, processor: Any, folder: Path, kinds: Collection[str], world: World = SCENES
) -> tuple[dict[str, Path], dict[str, str]]:
    """Fit what strategies need, where it is not in the folder.

    Returns:
        The artefact of each strategy of `kinds` that has a fitter, and why the others could not be fitted. The folder keeps both.
    """
    folder.mkdir(parents=True, exist_ok=True)
    known = [offer.fitter.strategy for offer in fitter_catalogue() if offer.distribution == DISTRIBUTION]
    wanted = [kind for kind in known if kind in kinds]
    refused = read_refused(folder)
    for kind in wanted:
        if kind in refused or (folder / f"{kind}.safetensors").is_file():
            continue
        try:
            _fit(kind, model, processor, world).save(folder / f"{kind}.safetensors")
        except FitRefused as error:
            refused[kind] = str(error)
            write_at_once(folder / REFUSED, json.dumps(refused, indent=2, sort_keys=True) + "\n")
    paths = {kind: folder / f"{kind}.safetensors" for kind in wanted if kind not in refused}
    return paths, {kind: refused[kind] for kind in wanted if kind in refused}


def read_refused(folder: Path) -> dict[str, str]:
    """Why some strategies could not be fitted, by name."""
    path = folder / REFUSED
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _fit(kind: str, model: Any, processor: Any, world: World) -> Artefact:
    if fitter_catalogue().find(kind).data == "demonstrations":
        demonstrations = world.demonstrate(DEMONSTRATIONS)
        return fitting.fit(kind, model, processor, demonstrations, model_id="testbed", split="train")
    judged = world.pictures(world.calibration, REVISED if kind == "revise" else JUDGED)
    examples = LabelledPictures(world.pictures(world.fitted_on, LABELLED), judged)
    split = f"{world.fitted_on}, {world.calibration}"
    return fitting.fit(kind, model, processor, examples, model_id="testbed", split=split)
