"""Digests of a checkpoint's weights, by which artefacts know their model where an engine has taken it apart."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import safetensors
from transformers.utils import cached_file

from lvlm_guard.files import is_folder
from lvlm_guard.strategy.fingerprints import choose_weights, digest_weight

LAYER = re.compile(r"(.*?)layers\.\d+\.")
FOREIGN = re.compile(r"vis|image|audio|speech|tower")


def find_checkpoint(model: str, revision: str | None) -> Path | None:
    """Return the folder of a model's files, a folder itself or one of the hub's on this disk; None where it is not here."""
    if is_folder(model):
        return Path(model)
    try:
        config = cached_file(model, "config.json", revision=revision or "main", local_files_only=True)
    except OSError:
        return None
    return None if config is None else Path(config).parent


def digest_checkpoint(folder: Path | None) -> dict[str, dict[str, str]]:
    """Return digests of some weights of the decoder, as `digest_weights` does of a loaded model; none where none are found.

    Args:
        folder: Where safetensors files lie, or None.
    """
    files = {} if folder is None else _list_weights(folder)
    prefix = _find_decoder(files)
    if prefix is None:
        return {}
    inside = {name.removeprefix(prefix): path for name, path in files.items() if name.startswith(prefix)}
    names = [name for name, path in inside.items() if _is_matrix(path, prefix + name)]
    return {name: _digest(inside[name], prefix + name) for name in choose_weights(names)}


def _list_weights(folder: Path) -> dict[str, Path]:
    weights: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safetensors.safe_open(path, framework="pt") as file:
            weights |= dict.fromkeys(file.keys(), path)
    return weights


def _find_decoder(files: Mapping[str, Path]) -> str | None:
    """Return what the names of the decoder's weights begin with: what most layers do that are of no tower."""
    prefixes = [match[1] for name in files if (match := LAYER.match(name)) is not None]
    counts = Counter(prefix for prefix in prefixes if not FOREIGN.search(prefix))
    return counts.most_common(1)[0][0] if counts else None


def _is_matrix(path: Path, name: str) -> bool:
    with safetensors.safe_open(path, framework="pt") as file:
        return len(file.get_slice(name).get_shape()) > 1


def _digest(path: Path, name: str) -> dict[str, str]:
    with safetensors.safe_open(path, framework="pt") as file:
        return digest_weight(file.get_tensor(name))
