"""Directions of a stack as steering vectors for other programs, with a page that says what these do otherwise."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvlm_guard import loading
from lvlm_guard.errors import InputError, StrategyRefused, nearest, quote
from lvlm_guard.export.constant_edits import ConstantEdit, resolve_edits
from lvlm_guard.export.describing import describe_edits, describe_source
from lvlm_guard.export.folders import check_folder, write_folder
from lvlm_guard.export.vector_files import READERS, SteeringVectors
from lvlm_guard.extras import import_extra
from lvlm_guard.files import write_whole
from lvlm_guard.guard import Guard
from lvlm_guard.host.stack import Stack
from lvlm_guard.strategy.hidden_operations import Project, Shift, Turn
from lvlm_guard.verification.prompts import PromptSet

DEEDS = {
    Turn: "turns what the {site} block of a layer returns towards the direction, and keeps its norm",
    Project: "removes from what the {site} block of a layer returns what lies along the directions, a file for each of them",
    Shift: "adds the vector to what the {site} block of a layer returns",
}


@dataclass(frozen=True)
class VectorExport:
    """What was asked for.

    Args:
        model: As `lvlm_guard.loading.load` takes it.
        stack: The strategies.
        folder: Where the files go.
        reader: The program that should read them, a name of `READERS`.
        device: As above.
        dtype: As above.
        force: Whether an export that is there is replaced.
    """

    model: str
    stack: Stack
    folder: Path
    reader: str
    device: str | None = None
    dtype: str = "auto"
    force: bool = False

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
        model, processor = loading.load(self.model, self.device, self.dtype)
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
        write_whole(draft / "README.md", self._describe(edits).encode())
        return {
            **describe_source("vectors", self.model, self.stack),
            "reader": self.reader,
            "files": {
                f"{vectors.name}{reader.suffix}": {"layers": list(vectors.layers)} for vectors in files
            },
            "edits": describe_edits(edits),
            "note": "Vectors are those of the strategies, unscaled; README.md says what the reader does otherwise with them.",
        }  # fmt: skip

    def _describe(self, edits: Sequence[ConstantEdit]) -> str:
        """Return the page that lies beside the files."""
        first = {(edit.strategy, edit.number): edit for edit in reversed(edits)}
        deeds = [
            f"- `{edit.strategy}` {DEEDS[type(edit.operation)].format(site=edit.site)}; strength {edit.operation.strength:g}."
            for edit in first.values()
        ]
        difference = (
            f"{self.reader} adds a vector, times a strength, to the output of the layer. That is another operation: answers are not those "
            "of the guard, the strength has to be found anew, and no figure of the guard speaks of it."
        )
        head = f"Written by lvlm-guard for {self.model}. {READERS[self.reader].use}."
        title, deed = f"# Steering vectors for {self.reader}", "What the strategies do with these vectors:"
        return "\n".join([title, "", head, "", deed, "", *reversed(deeds), "", difference, ""])


def collect_vectors(edits: Sequence[ConstantEdit], model_type: str) -> Iterator[SteeringVectors]:
    """Yield a file for each edit; for each direction, where it removes several."""
    for (strategy, number), group in itertools.groupby(edits, lambda edit: (edit.strategy, edit.number)):
        layers = {edit.layer: edit for edit in group}
        base = strategy if number == 0 else f"{strategy}-{number + 1}"
        keeps_norms = all(isinstance(edit.operation, Turn) for edit in layers.values())
        rows = {layer: edit.vectors.reshape(-1, edit.vectors.shape[-1]) for layer, edit in layers.items()}
        count = max(len(vectors) for vectors in rows.values())
        for index in range(count):
            name = base if count == 1 else f"{base}-direction-{index + 1}"
            of_layers = {layer: vectors[index].clone() for layer, vectors in rows.items() if index < len(vectors)}
            yield SteeringVectors(name, model_type, of_layers, keeps_norms)
