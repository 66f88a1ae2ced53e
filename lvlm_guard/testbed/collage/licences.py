"""Under which licences the parts of a built model are published, as a text that is written beside it."""

from __future__ import annotations

from collections.abc import Sequence

from lvlm_guard.testbed.collage.model_parts import LANGUAGE, VISION
from lvlm_guard.testbed.collage.parts import PublishedPart
from lvlm_guard.testbed.collage.world.picture_parts import PICTURE_PARTS

LICENCES_FILE = "LICENCES.md"
"""The file beside a built model."""

PARTS: Sequence[PublishedPart] = (LANGUAGE, VISION, *(source.part for source in PICTURE_PARTS.values()))
"""Every part that somebody else publishes: of the model, then of the pictures it was taught with."""

_HEAD = """# Licences of the parts

This model was put together by `lvlm-guard testbed build --world collage` from packages that others publish. None of them is
shipped with lvlm_guard. What teaching changed (projector, table of places, low-rank changes) is part of lvlm_guard, under its licence.

| part | what it is | licence | from | checksum |
|---|---|---|---|---|
"""


def licences() -> str:
    """Return the text."""
    return _HEAD + "".join(
        f"| {part.name} {part.version} | {part.contents} | {part.licence} | {part.url} | `{part.checksum}` |\n"
        for part in PARTS
    )
