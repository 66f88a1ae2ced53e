"""The page beside files of steering vectors: how their program is told of them, and what it does otherwise than the guard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lvlm_guard.export.constant_edits import ConstantEdit
from lvlm_guard.export.vector_files import SteeringVectors, VectorReader
from lvlm_guard.strategy.hidden_operations import Project, Shift, Turn

DEEDS = {
    Turn: "turns what {place} returns towards the direction, and keeps its norm",
    Project: "removes from what {place} returns what lies along the directions, a file for each of them",
    Shift: "adds the vector to what {place} returns",
}
SAME_OPERATION = (
    "{reader} adds a vector, times a strength, to the output of the layer, as the strategies do: with their strength, answers are those of "
    "the guard, but for rounding."
)
ANOTHER_OPERATION = (
    "{reader} adds a vector, times a strength, to the output of the layer. That is another operation: answers are not those "
    "of the guard, the strength has to be found anew, and no figure of the guard speaks of it."
)


def describe_files(
    reader: VectorReader, model: str, edits: Sequence[ConstantEdit], files: Sequence[SteeringVectors]
) -> str:
    """Return the page that lies beside the files, as Markdown."""
    title, head = f"# Steering vectors for {reader.name}", f"Written by lvlm-guard for {model}. {reader.use}."
    lines = [title, "", head, "", "Layers, counted from 0 in the model's list of layers:", ""]
    lines += [f"- `{vectors.name}{reader.suffix}`: {', '.join(map(str, vectors.layers))}" for vectors in files]
    lines += ["", "What the strategies do with these vectors:", "", *_describe_deeds(edits), ""]
    lines.append((SAME_OPERATION if all(map(_is_addition, edits)) else ANOTHER_OPERATION).format(reader=reader.name))
    if reader.norms and any(vectors.by_norm for vectors in files):
        lines += ["", reader.norms]
    return "\n".join([*lines, ""])


def _describe_deeds(edits: Sequence[ConstantEdit]) -> Iterator[str]:
    first = {(edit.strategy, edit.number): edit for edit in reversed(edits)}
    for edit in reversed(first.values()):
        place = "a layer" if edit.site == "residual" else f"the {edit.site} block of a layer"
        deed = DEEDS[type(edit.operation)].format(place=place)
        yield f"- `{edit.strategy}` {deed}; strength {edit.operation.strength:g}."


def _is_addition(edit: ConstantEdit) -> bool:
    """Whether an edit is what the readers do."""
    return isinstance(edit.operation, Shift) and edit.site == "residual"
