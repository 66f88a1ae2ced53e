"""What is fitted offline, as files: safetensors whose manifest says what they are, and of which model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from lvlm_guard.errors import GuardWarning, InputError, StrategyRefused, quote, shorten
from lvlm_guard.files import is_file, write_whole
from lvlm_guard.strategy.fingerprints import differ, digest_image_side, digest_weights, find_revision
from lvlm_guard.user_warnings import warn_user

MANIFEST = "lvlm_guard"
FLOATS = (torch.float16, torch.bfloat16, torch.float32)
INTEGERS = (torch.int64, torch.int32)
UNREADABLE = (
    safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, RuntimeError,
)  # fmt: skip
"""Errors of a file that is no artefact, whatever it is instead."""
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
    artefact = Artefact.load(self.artefact, "vti", gen.model)
    directions = artefact.read("decoder", (gen.model.depth, gen.model.hidden_size))
    ```

    Args:
        kind: Name of the strategy they were fitted for.
        tensors: Tensors by name, on the CPU.
        manifest: Further facts: those of `describe_model`, `model` (its id), `split` (the data fitted on),
            `settings` of the fitter, `lvlm_guard` (the version). Plain values that JSON holds. `save` adds `sha256`, of the
            tensors.
        path: The file it was read from.
    """

    kind: str
    tensors: Mapping[str, Tensor]
    manifest: Mapping[str, Any] = field(default_factory=dict)
    path: Path | None = None

    @classmethod
    def load(cls, path: str | Path, kind: str, model: Any) -> Artefact:
        """Read an artefact, and check that it is whole, one of this kind, and of this model.

        Args:
            path: The file.
            kind: Name of the strategy that it must be fitted for.
            model: What is known of the model it is for: `gen.model`. With a config alone, weights are not compared.

        Raises:
            InputError: No such file, a file that is no artefact or was changed, one of another kind, or one that holds NaN,
                infinities or nothing.
            StrategyRefused: It was fitted on another model.

        Warns:
            GuardWarning: It does not say which weights it was fitted on.
        """
        config = getattr(model, "config", model)
        artefact = _read(Path(path), kind)
        if artefact.kind != kind:
            raise InputError(
                f"{kind!r} needs an artefact fitted for it: {path} was fitted for {quote(artefact.kind)}. {_refit(kind)}"
            )
        if artefact.manifest.get("config") != config_hash(config):
            raise artefact._describe_foreign(config, "layers or sizes")  # noqa: SLF001 - its own class
        if callable(digest := getattr(model, "digest_weights", None)):
            artefact._compare_weights(config, digest())  # noqa: SLF001 - as above
        if callable(digest := getattr(model, "digest_image_side", None)):
            artefact._compare_image_side(config, digest())  # noqa: SLF001 - as above
        return artefact

    def _compare_weights(self, config: Any, loaded: Mapping[str, Mapping[str, str]]) -> None:
        """Refuse other weights; warn where they cannot be compared."""
        recorded, revision = self.manifest.get("weights"), self.manifest.get("revision")
        is_foreign = differ(recorded, loaded) if isinstance(recorded, Mapping) else None
        if is_foreign is None and revision and find_revision(config):
            is_foreign = revision != find_revision(config)
        if is_foreign:
            raise self._describe_foreign(config, "weights")
        if is_foreign is None:
            warn_user(
                f"{self.path} does not say which weights it was fitted on, or they cannot be compared: that it belongs to this "
                f"model is not checked. {_refit(self.kind)}",
                GuardWarning,
            )

    def _compare_image_side(self, config: Any, loaded: Mapping[str, Mapping[str, str]]) -> None:
        """Refuse another projector or vision tower; where the manifest or the model says nothing of it, nothing is compared."""
        recorded = self.manifest.get("image_side")
        if isinstance(recorded, Mapping) and differ(recorded, loaded):
            raise self._describe_foreign(config, "projector or vision tower")

    def _describe_foreign(self, config: Any, difference: str) -> StrategyRefused:
        model = shorten(str(self.manifest.get("model") or "another model"), 80)
        return StrategyRefused(
            f"{self.kind!r} needs an artefact of this model ({config.model_type}): {self.path} was fitted on {model}, whose "
            f"{difference} differ{'' if difference.endswith('s') else 's'}. {_refit(self.kind)}"
        )

    def read(self, name: str, shape: Sequence[int | None], *, integers: bool = False) -> Tensor:
        """Return a tensor after a check of its shape and dtype.

        Args:
            name: Its name.
            shape: Its sizes; None where any size from 1 will do.
            integers: Whether it holds whole numbers; else fp16, bf16 or fp32, returned in fp32.

        Raises:
            InputError: There is none, or it is of another shape or dtype.
        """
        tensor = self[name]
        fits = tensor.ndim == len(shape) and all(
            want in (None, has) for want, has in zip(shape, tensor.shape, strict=True)
        )
        if not fits or tensor.dtype not in (INTEGERS if integers else FLOATS):
            expected = f"{'whole numbers' if integers else 'floats'} {[size or 'any' for size in shape]}".replace(
                "'", ""
            )
            raise InputError(
                f"{self.path or 'The artefact'}: {name!r} must be {expected}, got {tensor.dtype} {list(tensor.shape)}. "
                f"{_refit(self.kind)}"
            )
        return tensor if integers else tensor.float()

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise InputError(f"{self.path or 'The artefact'} holds no {name!r}. {_refit(self.kind)}")
        return self.tensors[name]

    def save(self, path: str | Path) -> None:
        """Write the file whole and rename it, so that `path` never holds half an artefact.

        Raises:
            InputError: A tensor is no use, or the file cannot be written; `path` is as it was.
        """
        for name, tensor in self.tensors.items():
            _check_values(name, tensor)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()}
        manifest = {**self.manifest, "kind": self.kind, "sha256": _hash_tensors(tensors)}
        metadata = {MANIFEST: json.dumps(manifest, sort_keys=True)}
        write_whole(Path(path), safetensors.torch.save(tensors, metadata))


def config_hash(config: Any) -> str:
    """Return a hash of what hidden states depend on: architecture and sizes, not the names of versions."""
    text, vision = config.get_text_config(decoder=True), getattr(config, "vision_config", None)
    facts = {"model_type": config.model_type, "text": _sizes(text, _TEXT), "vision": _sizes(vision, _VISION)}
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=8).hexdigest()


def describe_model(model: Any) -> dict[str, Any]:
    """Return the facts by which an artefact knows its model again: `config`, `revision`, `weights` and `image_side`."""
    return {
        "config": config_hash(model.config),
        "revision": find_revision(model.config),
        "weights": digest_weights(model),
        "image_side": digest_image_side(model),
    }


def _sizes(config: Any, names: Mapping[str, tuple[str, ...]]) -> dict[str, int | None]:
    values = {name: [getattr(config, alias, None) for alias in aliases] for name, aliases in names.items()}
    return {name: next((value for value in row if isinstance(value, int)), None) for name, row in values.items()}


OTHER_COMMANDS = {"profile": "Measure one: lvlm-guard diagnose profile --model MODEL --suite SUITE --out FILE."}
"""How artefacts are made that belong to no strategy."""


def _refit(kind: str) -> str:
    if kind in OTHER_COMMANDS:
        return OTHER_COMMANDS[kind]
    return f"Fit one: lvlm-guard fit {kind} --model MODEL --data DATA --out FILE."


def _read(path: Path, kind: str) -> Artefact:
    _check_file(path, kind)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            manifest = json.loads((file.metadata() or {})[MANIFEST])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        artefact = Artefact(manifest.pop("kind"), tensors, manifest, path)
    except UNREADABLE as error:
        reason = f"it has no {error} in its metadata" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{path} is not an artefact of lvlm_guard: {reason}. {_refit(kind)}") from error
    if (recorded := manifest.pop("sha256", None)) is not None and recorded != _hash_tensors(tensors):
        raise InputError(
            f"{path} was changed after it was fitted: its tensors are not those of its checksum. {_refit(kind)}"
        )
    for name, tensor in tensors.items():
        _check_values(f"{name} of {path}", tensor)
    return artefact


def _check_file(path: Path, kind: str) -> None:
    """Refuse what is no ordinary file."""
    if not is_file(path):
        raise InputError(f"There is no artefact {quote(str(path))}. {_refit(kind)}")


def _check_values(name: str, tensor: Tensor) -> None:
    """Refuse a tensor without values, with NaN or infinities, or of a kind that files of artefacts do not hold."""
    if tensor.layout != torch.strided or tensor.is_meta or tensor.dtype not in (*FLOATS, *INTEGERS, torch.float64):
        where = " on meta" if tensor.is_meta else ""
        raise InputError(f"{quote(name)} cannot be part of an artefact: it is {tensor.dtype}, {tensor.layout}{where}.")
    if not tensor.numel() or not bool(tensor.isfinite().all()):
        raise InputError(f"{quote(name)} cannot be part of an artefact: it is empty, or holds NaN or infinite values.")


def _hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, dtypes, shapes and bytes of tensors that lie on the CPU."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}\n{tensor.dtype}\n{list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
