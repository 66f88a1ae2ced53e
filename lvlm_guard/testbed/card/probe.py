"""What the image tokens hold: linear readouts of clearly visible objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from lvlm_guard.testbed import architectures
from lvlm_guard.testbed.architectures.picture import ACROSS, pixel_batch
from lvlm_guard.testbed.training.vision_stage import clear_patches
from lvlm_guard.testbed.world import drawing
from lvlm_guard.testbed.world.habits import CATEGORIES, COLOUR_NAMES
from lvlm_guard.testbed.world.scenes import Scene

TARGETS = ("category", "colour", "row", "column")
_CLASSES = {"category": len(CATEGORIES), "colour": len(COLOUR_NAMES), "row": drawing.CELLS, "column": drawing.CELLS}
_RIDGE = 1e-2


@torch.no_grad()
def probe(model: Any, fit: Sequence[Scene], test: Sequence[Scene]) -> dict[str, dict[str, float]]:
    """Accuracy of ridge readouts fitted on one set of scenes and tested on another, by place and target.

    The places are the vision tower's output and the projected image tokens; only patches of clearly visible objects
    count (contrast at least 0.7, noise at most 0.08).
    """
    results: dict[str, dict[str, float]] = {}
    fitted, tested = _features(model, fit), _features(model, test)
    fit_labels, test_labels = _labels(fit), _labels(test)
    for place, features in fitted.items():
        results[place] = {
            target: _accuracy(features, fit_labels[target], tested[place], test_labels[target], _CLASSES[target])
            for target in TARGETS
        }
    return results


def _features(model: Any, scenes: Sequence[Scene]) -> dict[str, Tensor]:
    """Return features of the clear patches of all scenes, each (patches, hidden)."""
    clear = clear_patches(scenes)
    architecture = architectures.architecture_of(model)
    features = architecture.vision_encoder(model)(pixel_batch(scenes).to(model.device, model.dtype))[:, 1:]
    projected = architecture.project(model, features)
    return {"tower": features.float().cpu()[clear], "projected": projected.float().cpu()[clear]}


def _labels(scenes: Sequence[Scene]) -> dict[str, Tensor]:
    """Return labels in the order of `_features`."""
    step = ACROSS // drawing.CELLS
    clear = clear_patches(scenes).view(-1, ACROSS, ACROSS)
    rows: dict[str, list[int]] = {target: [] for target in TARGETS}
    for scene, down, right in clear.nonzero().tolist():
        cell = (down // step, right // step)
        thing = next(thing for thing in scenes[scene].objects if thing.cell == cell)
        values = (CATEGORIES.index(thing.category), COLOUR_NAMES.index(thing.colour), *cell)
        for target, value in zip(TARGETS, values, strict=True):
            rows[target].append(value)
    return {target: torch.tensor(values) for target, values in rows.items()}


def _accuracy(fit: Tensor, fit_labels: Tensor, test: Tensor, test_labels: Tensor, classes: int) -> float:
    mean, spread = fit.mean(0), fit.std(0) + 1e-6
    inputs = torch.cat(((fit - mean) / spread, torch.ones(len(fit), 1)), dim=1).double()
    gram = inputs.T @ inputs / len(inputs) + _RIDGE * torch.eye(inputs.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(gram, inputs.T @ one_hot(fit_labels, classes).double() / len(inputs))
    tested = torch.cat(((test - mean) / spread, torch.ones(len(test), 1)), dim=1).double()
    return ((tested @ weights).argmax(-1) == test_labels).double().mean().item()
