"""Parts that others publish: what they are, and fetching them, checked against a checksum and never silently."""

from __future__ import annotations

import hashlib
import http.client
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from lvlm_guard.files import is_file, put
from lvlm_guard.testbed.collage.folders import ready_folder
from lvlm_guard.testbed.errors import TestbedError
from lvlm_guard.testbed.files import clear_failure

Announce = Callable[[str], None]
"""Takes a line for the user."""

PARTIAL = ".partial"
"""How the name of a file ends that has not arrived whole."""
_BLOCK = 1 << 20
_PATIENCE = 60.0
"""Seconds without a byte until a connection counts as lost."""
_PARTIAL_CONTENT = 206


@dataclass(frozen=True)
class PublishedPart:
    """A file of a package that somebody else publishes.

    Args:
        name: The package and where it is published, as in "npm emoji-datasource-google".
        version: Its version.
        url: Where the file is.
        size: Bytes of the file.
        checksum: Algorithm and hexadecimal digest, as in "sha256:0123...".
        licence: Under which licence its authors publish it.
        contents: What it is, in a few words.
    """

    name: str
    version: str
    url: str
    size: int
    checksum: str
    licence: str
    contents: str

    @property
    def file(self) -> str:
        """The name of the file."""
        return self.url.rsplit("/", 1)[1]

    def __str__(self) -> str:
        """Say what it is, how large, and under which licence."""
        return f"{self.name} {self.version} ({self.contents}; {self.size / 1e6:.1f} MB, {self.licence})"


def fetch_part(part: PublishedPart, folder: Path, announce: Announce = print) -> Path:
    """Return the file of a part in a folder, fetched unless it is there; what an interrupted fetch left is gone on with.

    A file that was put there by hand is taken if its checksum is right, so a machine without network can be served.

    Args:
        part: What to fetch.
        folder: Where to; made if its parent is there.
        announce: Told before anything is fetched: what, how large, which licence, from where.

    Raises:
        InputError: The folder cannot be used.
        TestbedError: There is no network, no space, or what came is not the part: nothing wrong is kept.
    """
    path = ready_folder(folder) / part.file
    with clear_failure(folder):
        if is_file(path) and _digest(path, part) == part.checksum:
            return path
    partial = path.with_name(path.name + PARTIAL)
    have = partial.stat().st_size if is_file(partial) else 0
    _check_space(part, folder, have)
    announce(f"Fetching {part} from {part.url}" + (f", {have / 1e6:.1f} MB are there" if have else ""))
    _download(part, partial, have)
    _check(part, partial)
    with clear_failure(path):
        partial.replace(path)
    return path


def _digest(path: Path, part: PublishedPart) -> str:
    algorithm = part.checksum.partition(":")[0]
    with path.open("rb") as file:
        digest = hashlib.new(algorithm)
        while block := file.read(_BLOCK):
            digest.update(block)
    return f"{algorithm}:{digest.hexdigest()}"


def _check_space(part: PublishedPart, folder: Path, have: int) -> None:
    missing = max(0, part.size - have)
    free = shutil.disk_usage(folder).free
    if free < missing:
        raise TestbedError(
            f"{part.name}: {missing / 1e6:.0f} MB are to be fetched, but {folder} has room for {free / 1e6:.0f} MB. "
            "Make room or name another folder, then run the same command again."
        )


def _download(part: PublishedPart, partial: Path, have: int) -> None:
    """Fetch what is missing, or all of it from a server that cannot send a rest."""
    if have >= part.size:
        return
    request = Request(part.url, headers={"Range": f"bytes={have}-"} if have else {})  # noqa: S310 - parts are https
    try:
        with urlopen(request, timeout=_PATIENCE) as answer:  # noqa: S310
            _store(answer, partial, append=answer.status == _PARTIAL_CONTENT)
    except HTTPError as problem:
        raise _interrupted(part, f"the server says {problem.code} {problem.reason}") from problem
    except (OSError, http.client.HTTPException) as problem:
        reason = problem.reason if isinstance(problem, URLError) else problem
        raise _interrupted(part, str(reason) or type(problem).__name__) from problem


def _store(answer: http.client.HTTPResponse, partial: Path, *, append: bool) -> None:
    """Write what comes; only the writing is guarded here, as a lost connection is an OSError too."""
    with clear_failure(partial):
        file = partial.open("ab" if append else "wb", buffering=0)
    with file:
        while block := answer.read(_BLOCK):
            with clear_failure(partial):
                put(file.fileno(), block)


def _check(part: PublishedPart, partial: Path) -> None:
    """Refuse what is not whole, which is kept, and what is not the part, which is not."""
    if partial.stat().st_size < part.size:
        raise _interrupted(part, "the connection was lost")
    digest = _digest(partial, part)
    if digest != part.checksum:
        partial.unlink()
        raise TestbedError(
            f"{part.name}: what came from {part.url} is not version {part.version}: its checksum is {digest}, expected "
            f"{part.checksum}. It was deleted. A proxy may have answered instead; fetch the file by hand, and put it "
            f"into {partial.parent} as {part.file}."
        )


def _interrupted(part: PublishedPart, reason: str) -> TestbedError:
    return TestbedError(
        f"{part.name} could not be fetched from {part.url}: {reason}. What came so far is kept: run the same command "
        f"again to go on. Without network, put {part.file} into the folder of the parts by hand."
    )
