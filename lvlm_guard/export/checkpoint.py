"""A stack of linear edits baked into a checkpoint that loads without a guard; what it answers is compared before it is kept."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lvlm_guard import loading
from lvlm_guard.errors import InputError, Refused
from lvlm_guard.export.constant_edits import ConstantEdit, resolve_edits
from lvlm_guard.export.describing import describe_edits, describe_source
from lvlm_guard.export.folders import check_folder, write_folder
from lvlm_guard.export.folding import Fold, plan_folds
from lvlm_guard.export.order import ExportOrder
from lvlm_guard.export.weight_files import CheckpointFiles, StoredWeight
from lvlm_guard.guard import Guard
from lvlm_guard.verification.distances import distance, effect, tolerance_of
from lvlm_guard.verification.prompts import PromptSet
from lvlm_guard.verification.runs import FreeRun, run_along_plain, run_freely

NO_EDITS = (
    "There is nothing to bake: no strategy of the stack changes anything. Name a stack that edits hidden states, such as a file "
    "with nullu and its artefact."
)


@dataclass(frozen=True)
class ExportComparison:
    """How far the logits of the exported model are from those of the guarded one, in units of their standard deviation.

    Args:
        prompts: Pictures with a question that were run.
        steps: Tokens of each.
        difference: The largest one.
        tolerance: The largest that rounding explains in this dtype.
        effect: How far the guarded model is from the plain one.
    """

    prompts: int
    steps: int
    difference: float
    tolerance: float
    effect: float

    def check(self) -> None:
        """Refuse an export that is another model, or of which that cannot be told.

        Raises:
            Refused: The difference is above the tolerance, or the effect below it.
        """
        figures = (
            f"difference {self.difference:.2g}, tolerance {self.tolerance:.2g}, effect of the stack {self.effect:.2g}"
        )
        if not self.difference <= self.tolerance:
            raise Refused(f"The edited weights do not answer as the guarded model does ({figures}): nothing is kept.")
        if not self.effect > self.tolerance:
            raise Refused(
                f"The stack changes less than rounding does ({figures}), so that the export works cannot be shown: nothing is kept. Load "
                "the model with --dtype float32, or raise the strength."
            )


@dataclass(frozen=True)
class CheckpointExport(ExportOrder):
    """A checkpoint that was asked for."""

    def run(self) -> tuple[ExportComparison, int]:
        """Bake, compare and write; return the comparison, and how many tensors were changed.

        Raises:
            InputError: The place, the model or its files cannot be used, or there is nothing to bake.
            Refused: Something of the stack is no constant linear edit, or the exported model answers otherwise.
        """
        check_folder(self.folder, force=self.force)
        baking = _Baking.begin(self)
        manifest = write_folder(self.folder, lambda draft: self._fill(draft, baking))
        return ExportComparison(**manifest["comparison"]), len(manifest["tensors"])

    def _fill(self, draft: Path, baking: _Baking) -> dict[str, Any]:
        """Write the checkpoint, and load it again to compare it."""
        names = baking.write(draft)
        comparison = self._compare(draft, baking.expected)
        comparison.check()
        return {
            **describe_source("checkpoint", self.model, self.stack),
            "edits": describe_edits(baking.edits),
            "tensors": names,
            "comparison": asdict(comparison),
            "note": "These weights hold the edits above already: do not run them with this stack as well.",
        }

    def _compare(self, draft: Path, expected: _Expected) -> ExportComparison:
        model, processor = loading.load(str(draft), self.device, expected.dtype)
        prompts = PromptSet(Guard(model, processor, None))
        figures = [
            distance(run_along_plain(model, prompts.row(row), run.path)[:, 0], run.logits[:, 0], run.logits[:, 0])
            for row, run in enumerate(expected.runs)
        ]
        steps = len(expected.runs[0].logits)
        tolerance = tolerance_of(model.dtype)
        return ExportComparison(len(figures), steps, max(figures), tolerance, expected.effect)


@dataclass(frozen=True, eq=False)
class _Expected:
    """What the guarded model answers: its runs, how far they are from plain ones, and the dtype of its weights."""

    runs: Sequence[FreeRun]
    effect: float
    dtype: str


@dataclass(frozen=True, eq=False)
class _Baking:
    """Changed weights that are to be written, and what the model answered before."""

    edits: Sequence[ConstantEdit]
    expected: _Expected
    files: CheckpointFiles
    changed: Mapping[StoredWeight, Tensor]

    @classmethod
    def begin(cls, export: CheckpointExport) -> _Baking:
        """Load the model, let it answer with its guard, and change its weights in memory."""
        model, processor = export.load()
        guard = Guard(model, processor, export.stack)
        prompts = PromptSet(guard.using(None))
        rows = [prompts.row(row) for row in range(prompts.size)]
        edits = resolve_edits(model, processor, export.stack, rows)
        if not edits:
            raise InputError(NO_EDITS)
        folds = plan_folds(model, edits, rows[0])
        files = CheckpointFiles(find_checkpoint(export.model))
        places = {name: (files.find(name, value), value) for fold in folds for name, value in fold.parameters.items()}
        expected = _run_guarded(guard, rows)
        changed = _change(folds, places)
        return cls(edits, expected, files, changed)

    def write(self, draft: Path) -> list[str]:
        """Write the checkpoint, and return the names of the changed tensors in it."""
        gc.collect()  # the model in memory is not needed any more, and another is loaded
        self.files.write(draft, self.changed)
        return sorted(weight.name for weight in self.changed)


def find_checkpoint(name: str) -> Path:
    """Return the local folder of a model: the bundled one, a folder, or what the hub's cache holds.

    Raises:
        InputError: There is none.
    """
    config = loading.find_file(name, "config.json")
    if config is None:
        raise InputError(f"The files of {name!r} are not here. Name a local folder.")
    return config.parent


def _change(folds: Sequence[Fold], places: Mapping[str, tuple[StoredWeight, Tensor]]) -> dict[StoredWeight, Tensor]:
    for fold in folds:
        fold.apply()
    return {weight: value.detach().cpu().clone() for weight, value in places.values()}


def _run_guarded(guard: Guard, rows: Sequence[Mapping[str, Any]]) -> _Expected:
    runs = [run_freely(guard, row) for row in rows]
    plain = [run_along_plain(guard.model, row, run.path) for row, run in zip(rows, runs, strict=True)]
    figures = [effect(run.logits[:, 0], logits[:, 0]) for run, logits in zip(runs, plain, strict=True)]
    return _Expected(runs, max(figures), str(guard.model.dtype).removeprefix("torch."))
