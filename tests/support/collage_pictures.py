"""A folder of parts of the collage world whose pictures are drawn: opened as fetched ones are, and fetched from nowhere."""

from __future__ import annotations

import hashlib
import json
from io import BytesIO
from pathlib import Path

from PIL import Image

from lvlm_guard.testbed.collage.world.picture_parts import CONTENTS, PICTURE_PARTS
from lvlm_guard.testbed.collage.world.pictures import draw_stand_in
from lvlm_guard.testbed.collage.world.things import THINGS


def picture_file(name: str, suffix: str) -> bytes:
    """Return a drawn picture of a thing as the bytes of a file."""
    buffer = BytesIO()
    image: Image.Image = draw_stand_in(name)
    image.save(buffer, format=suffix.removeprefix(".").upper())
    return buffer.getvalue()


def write_pictures(folder: Path) -> None:
    """Write drawn pictures of both renderings into a folder of parts."""
    for rendering, source in PICTURE_PARTS.items():
        place = folder / rendering
        place.mkdir(parents=True)
        drawn = {f"{thing.code}{source.suffix}": picture_file(thing.name, source.suffix) for thing in THINGS}
        for name, content in drawn.items():
            (place / name).write_bytes(content)
        sums = {name: hashlib.sha256(content).hexdigest() for name, content in drawn.items()}
        (place / CONTENTS).write_text(json.dumps({"checksum": source.part.checksum, "files": sums}), "utf-8")
