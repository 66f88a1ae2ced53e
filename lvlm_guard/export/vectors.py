"""Directions of a stack as steering vectors for other programs, with a page that says what these do otherwise."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lvlm_guard.errors import InputError, StrategyRefused, nearest, quote
from lvlm_guard.export.constant_edits import ConstantEdit, resolve_edits
from lvlm_guard.export.describing import describe_edits, describe_source
from lvlm_guard.export.folders import check_folder, write_folder
from lvlm_guard.export.order import ExportOrder
from lvlm_guard.export.vector_files import READERS, SteeringVectors
from lvlm_guard.export.vector_page import describe_files
from lvlm_guard.extras import import_extra
from lvlm_guard.files import write_whole
from lvlm_guard.guard import Guard
from lvlm_guard.strategy.hidden_operations import Turn
from lvlm_guard.verification.prompts import PromptSet


@dataclass(frozen=True)
class VectorExport(ExportOrder):
    """Files of vectors that were asked for.

    Args:
        reader: The program that should read them, a name of `READERS`.
    """

    reader: str = field(kw_only=True)

    def run(self) -> list[str]:
        """Write the files, and return their names.

        Raises:
            InputError: The reader, the place or the model cannot be used, or there is no vector.
            Refused: Something of the stack is no constant edit of the decoder's states, or nothing that the reader can hold.
        """
        if self.reader not in READERS:
            raise InputError(f"No form is known that {quote(self.reader)} reads.{nearest(self.reader, READERS)}")
        if READERS[self.reader].suffix == ".gguf":
            import_extra("gguf", "export")
        check_folder(self.folder, force=self.force)
        model, processor = self.load()
        edits = self._resolve(model, processor)
        files = list(collect_vectors(edits, model.config.model_type))
        manifest = write_folder(self.folder, lambda draft: self._fill(draft, edits, files))
        return list(manifest["files"])

    def _resolve(self, model: Any, processor: Any) -> list[ConstantEdit]:
        prompts = PromptSet(Guard(model, processor, None))
        rows = [prompts.row(row) for row in range(prompts.size)]
        edits = resolve_edits(model, processor, self.stack, rows)
        if not edits:
            raise InputError(
                "There are no vectors: no strategy of the stack changes anything. Name a stack that steers, such as a file with vti "
                "and its artefact."
            )
        for edit in edits:
            self._refuse_unwritable(edit)
        return edits

    def _refuse_unwritable(self, edit: ConstantEdit) -> None:
        if edit.tower != "decoder" or edit.site == "embedding":
            place = "the vision tower" if edit.tower != "decoder" else "the token embeddings"
            raise StrategyRefused(
                f"{edit.strategy!r} edits {place}, which these files cannot hold. Set the parameter of that part to its neutral value to "
                f"write the rest{self._list_neutral(edit.strategy)}."
            )
        if edit.layer < READERS[self.reader].first_layer:
            raise StrategyRefused(
                f"{edit.strategy!r} steers layer {edit.layer}, and {self.reader} none before {READERS[self.reader].first_layer}. Leave that "
                "layer out of the stack's layers, or write for another reader."
            )

    def _list_neutral(self, name: str) -> str:
        """Return the neutral values of a strategy in brackets."""
        strategy = dict(zip(self.stack.names, self.stack, strict=True))[name]
        neutral = getattr(strategy, "neutral", None) or {}
        return f" ({', '.join(f'{parameter} = {value}' for parameter, value in neutral.items())})" if neutral else ""

    def _fill(self, draft: Path, edits: Sequence[ConstantEdit], files: Sequence[SteeringVectors]) -> dict[str, Any]:
        reader = READERS[self.reader]
        for vectors in files:
            reader.write(vectors, draft / f"{vectors.name}{reader.suffix}")
        write_whole(draft / "README.md", describe_files(READERS[self.reader], self.model, edits, files).encode())
        return {
            **describe_source("vectors", self.model, self.stack),
            "reader": self.reader,
            "files": {f"{vectors.name}{reader.suffix}": {"layers": list(vectors.layers)} for vectors in files},
            "edits": describe_edits(edits),
            "note": "Vectors are those of the strategies, unscaled; README.md says what the reader does otherwise with them.",
        }  # fmt: skip


def collect_vectors(edits: Sequence[ConstantEdit], model_type: str) -> Iterator[SteeringVectors]:
    """Yield a file for each edit; for each direction, where it removes several."""
    for (strategy, number), group in itertools.groupby(edits, lambda edit: (edit.strategy, edit.number)):
        layers = {edit.layer: edit for edit in group}
        base = strategy if number == 0 else f"{strategy}-{number + 1}"
        by_norm = all(isinstance(edit.operation, Turn) for edit in layers.values())
        rows = {layer: edit.vectors.reshape(-1, edit.vectors.shape[-1]) for layer, edit in layers.items()}
        count = max(len(vectors) for vectors in rows.values())
        for index in range(count):
            name = base if count == 1 else f"{base}-direction-{index + 1}"
            of_layers = {layer: vectors[index].clone() for layer, vectors in rows.items() if index < len(vectors)}
            yield SteeringVectors(name, model_type, of_layers, by_norm)
