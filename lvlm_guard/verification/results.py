"""The outcome of a verification: what was verified, with what, and every check."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from lvlm_guard.files import exists
from lvlm_guard.verification.checks import STATUSES, Check, Status

FORMAT = 1
PACKAGES = ("lvlm-guard", "transformers", "torch")
LONGEST_LINE = 3
"""Checks that the line for an issue names."""


@dataclass(frozen=True)
class VerifiedModel:
    """What was verified.

    Args:
        name: Hub id, or the name of the folder it was loaded from.
        type: Model type of its config.
        architecture: Its class.
        revision: Commit on the hub; None where it was loaded from elsewhere.
        weights: Digest of parameters and buffers as they were loaded; another dtype has another one.
        dtype: Dtype of the parameters.
        device: Kind of device, with its name where it has one.
        quantisation: Method by which weights are stored; empty where they are not quantised.
    """

    name: str
    type: str
    architecture: str
    revision: str | None
    weights: str
    dtype: str
    device: str
    quantisation: str = ""


@dataclass(frozen=True)
class Verification:
    """The outcome.

    Args:
        checks: Every check, in the order in which they ran.
        model: What was verified.
        versions: Of the packages that decide what comes out.
        date: Day, as `2026-01-31`.
        format: Of `to_dict`.
    """

    checks: tuple[Check, ...]
    model: VerifiedModel
    versions: Mapping[str, str]
    date: str = dataclasses.field(default_factory=lambda: dt.datetime.now(dt.timezone.utc).date().isoformat())
    format: int = FORMAT

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not self.select("failed")

    def select(self, status: Status) -> list[Check]:
        """Return the checks that have a status."""
        return [check for check in self.checks if check.status == status]

    def to_dict(self) -> dict[str, Any]:
        """Return one row as plain values: what the registry keeps."""
        values = dataclasses.asdict(self)
        order = ("format", "date", "model", "versions", "checks")
        return {name: list(values[name]) if name == "checks" else values[name] for name in order}

    def to_json(self) -> str:
        """Return the row as one line of JSON."""
        return json.dumps(self.to_dict(), allow_nan=False)

    def summarize(self) -> str:
        """Return one line for an issue: what was verified, with what, and what did not pass."""
        counts = ", ".join(f"{len(self.select(status))} {status}" for status in STATUSES if self.select(status))
        model, versions = self.model, ", ".join(f"{name} {version}" for name, version in self.versions.items())
        worst = [*self.select("failed"), *self.select("refused")]
        named = "; ".join(f"{check.title} {describe_figure(check)}" for check in worst[:LONGEST_LINE])
        more = f" and {len(worst) - LONGEST_LINE} more" if len(worst) > LONGEST_LINE else ""
        quantised = f" {model.quantisation}" if model.quantisation else ""
        return (
            f"lvlm-guard verify: {model.architecture} ({model.type}) {model.name}, {model.dtype}{quantised} on {model.device}, "
            f"weights {model.weights[:12]}, {versions}: {counts}{f' ({named}{more})' if named else ''}"
        )


def describe_figure(check: Check) -> str:
    """Return status and figure of a check in a few words."""
    if check.figure is None:
        return check.status
    if check.tolerance is None:
        return f"{check.figure:.2f}"
    return (
        f"{check.figure:.2g}"
        if check.status == "pass"
        else f"{check.status}: {check.figure:.2g}, limit {check.tolerance:.2g}"
    )


def describe_model(model: Any, weights: str, name: str | None = None) -> VerifiedModel:
    """Return what a model is; `weights` is the digest of its weights, `name` what it is called."""
    config = model.config
    return VerifiedModel(
        name or _name_of(getattr(config, "_name_or_path", "")),
        str(getattr(config, "model_type", "")),
        type(model).__name__,
        getattr(config, "_commit_hash", None),
        weights,
        str(model.dtype).removeprefix("torch."),
        _device_of(model),
        _quantisation_of(config),
    )


def _name_of(path: Any) -> str:
    """Return a hub id as it is, and of a folder its name: where it lies is nobody's business."""
    path = str(path or "unnamed")
    is_id = path.count("/") <= 1 and not path.startswith((".", "/", "~")) and not exists(path)
    return path if is_id else Path(path).resolve().name or "unnamed"


def _device_of(model: Any) -> str:
    kind = model.device.type
    if kind == "cuda":
        return f"cuda {torch.cuda.get_device_name(model.device)}"
    return f"{kind} {platform.machine()}" if kind == "cpu" else kind


def _quantisation_of(config: Any) -> str:
    settings = getattr(config, "quantization_config", None)
    method = settings.get("quant_method") if isinstance(settings, Mapping) else getattr(settings, "quant_method", None)
    return str(getattr(method, "value", method) or "")


def describe_versions() -> dict[str, str]:
    """Return the versions of the packages that decide what comes out."""
    return {package: metadata.version(package) for package in PACKAGES}
