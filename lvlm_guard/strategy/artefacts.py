"""What is fitted offline, as files: safetensors whose manifest says what they are, and of which model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from lvlm_guard.errors import InputError, StrategyRefused
from lvlm_guard.files import write_whole

MANIFEST = "lvlm_guard"
_TEXT = {
    "hidden": ("hidden_size",),
    "depth": ("num_hidden_layers",),
    "heads": ("num_attention_heads",),
    "vocabulary": ("vocab_size",),
}
_VISION = {
    "hidden": ("embed_dim", "hidden_size"),
    "depth": ("num_hidden_layers", "depth"),
    "heads": ("num_attention_heads", "num_heads", "attention_heads"),
}


@dataclass(frozen=True)
class Artefact:
    """Tensors fitted offline for one strategy and one model.

    ```python
    directions = Artefact.load(self.artefact, "vti", gen.model.config)["decoder"]
    ```

    Args:
        kind: Name of the strategy they were fitted for.
        tensors: Tensors by name, on the CPU.
        manifest: Further facts: `model` (its id), `config` (its hash), `split` (the data fitted on),
            `settings` of the fitter, `lvlm_guard` (the version). Plain values that JSON holds.
        path: The file it was read from.
    """

    kind: str
    tensors: Mapping[str, Tensor]
    manifest: Mapping[str, Any] = field(default_factory=dict)
    path: Path | None = None

    @classmethod
    def load(cls, path: str | Path, kind: str, config: Any) -> Artefact:
        """Read an artefact, and check that it is one of this kind and of this model.

        Args:
            path: The file.
            kind: Name of the strategy that it must be fitted for.
            config: The config of the model it is for: `gen.model.config`.

        Raises:
            InputError: No such file, a file that is no artefact, or one of another kind.
            StrategyRefused: It was fitted on another model.
        """
        artefact = _read(Path(path), kind)
        if artefact.kind != kind:
            raise InputError(
                f"{kind!r} needs an artefact fitted for it: {path} was fitted for {artefact.kind!r}. {_refit(kind)}"
            )
        if artefact.manifest.get("config") != config_hash(config):
            model = artefact.manifest.get("model", "another model")
            raise StrategyRefused(
                f"{kind!r} needs an artefact of this model ({config.model_type}): {path} was fitted on {model}, whose layers "
                f"or sizes differ. {_refit(kind)}"
            )
        return artefact

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise InputError(f"{self.path or 'The artefact'} holds no {name!r}. {_refit(self.kind)}")
        return self.tensors[name]

    def save(self, path: str | Path) -> None:
        """Write the file whole and rename it, so that `path` never holds half an artefact.

        Raises:
            InputError: It cannot be written; `path` is as it was.
        """
        metadata = {MANIFEST: json.dumps({**self.manifest, "kind": self.kind}, sort_keys=True)}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()}
        write_whole(Path(path), safetensors.torch.save(tensors, metadata))


def config_hash(config: Any) -> str:
    """Return a hash of what hidden states depend on: architecture and sizes, not the names of versions."""
    text, vision = config.get_text_config(decoder=True), getattr(config, "vision_config", None)
    facts = {"model_type": config.model_type, "text": _sizes(text, _TEXT), "vision": _sizes(vision, _VISION)}
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=8).hexdigest()


def _sizes(config: Any, names: Mapping[str, tuple[str, ...]]) -> dict[str, int | None]:
    values = {name: [getattr(config, alias, None) for alias in aliases] for name, aliases in names.items()}
    return {name: next((value for value in row if isinstance(value, int)), None) for name, row in values.items()}


def _refit(kind: str) -> str:
    return f"Fit one: lvlm-guard fit {kind} --model MODEL --data DATA --out FILE."


def _read(path: Path, kind: str) -> Artefact:
    if not path.is_file():
        raise InputError(f"There is no artefact {path}. {_refit(kind)}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            manifest = json.loads((file.metadata() or {})[MANIFEST])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        return Artefact(manifest.pop("kind"), tensors, manifest, path)
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"it has no {error} in its metadata" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{path} is not an artefact of lvlm_guard: {reason}. {_refit(kind)}") from error
