"""Offline fitting: a module per strategy that turns demonstrations into an artefact.

Such a module is named after its strategy and has one function, `fit(model, processor, demonstrations, track)`, which
returns a `Fitted`. Models are run as they are and left as they were.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

import lvlm_guard
from lvlm_guard import anatomy
from lvlm_guard.errors import InputError, nearest
from lvlm_guard.forward import run_uncompiled
from lvlm_guard.request import conversation
from lvlm_guard.request.recent_pictures import RecentPictures
from lvlm_guard.strategy.artefacts import Artefact, config_hash

KINDS = ("adhh", "nullu", "vti")
"""The strategies there is something to fit for."""

Track = Callable[[Iterable[Any]], Iterable[Any]]
"""Hands an iterable on and shows how far it is, as `tqdm` does."""


@dataclass(frozen=True)
class Demonstration:
    """A picture, what was asked about it, a correct answer and a hallucinated one.

    Args:
        picture: A PIL image, or the path of one.
        prompt: The question, as the user would put it.
        correct: An answer that the picture bears out.
        hallucinated: The same answer with something in it that is not there.
    """

    picture: Any
    prompt: str
    correct: str
    hallucinated: str


@dataclass(frozen=True)
class Fitted:
    """What a fitter found.

    Args:
        tensors: Tensors by name.
        settings: What it was found with, as plain values.
    """

    tensors: Mapping[str, Tensor]
    settings: Mapping[str, Any] = field(default_factory=dict)


class Fitter(Protocol):
    """The function of a fitting module."""

    def __call__(self, model: Any, processor: Any, demonstrations: Sequence[Demonstration], track: Track) -> Fitted:
        """Fit; `track` goes round the longest loop."""
        ...


@torch.no_grad()
def fit(
    kind: str,
    model: Any,
    processor: Any,
    demonstrations: Sequence[Demonstration],
    *,
    model_id: str = "",
    split: str = "",
    track: Track = iter,
) -> Artefact:
    """Fit the artefact of one strategy on one model.

    Args:
        kind: One of `KINDS`.
        model: The model, in eval mode.
        processor: Its processor.
        demonstrations: At least two.
        model_id: What the manifest calls the model.
        split: What the manifest calls the data.
        track: Shows progress.

    Raises:
        InputError: An unknown kind, too few demonstrations, or a processor without a chat template.
    """
    check_kind(kind)
    if not getattr(processor, "chat_template", None):
        raise InputError(f"{type(processor).__name__} has no chat template, so the model cannot be asked anything.")
    if len(demonstrations) < 2:  # noqa: PLR2004 - one has no variance
        raise InputError(f"{kind} is fitted on 2 demonstrations or more, got {len(demonstrations)}.")
    fitter: Fitter = importlib.import_module(f"{__name__}.{kind}").fit
    fitted = fitter(model, processor, demonstrations, track)
    manifest = {
        "model": model_id or getattr(model.config, "_name_or_path", "") or type(model).__name__,
        "config": config_hash(model.config),
        "split": split,
        "settings": {"demonstrations": len(demonstrations), **fitted.settings},
        "lvlm_guard": lvlm_guard.__version__,
    }
    return Artefact(kind, fitted.tensors, manifest)


def check_kind(kind: str) -> None:
    """Raise `InputError` where there is nothing to fit for a strategy."""
    if kind not in KINDS:
        raise InputError(f"There is nothing to fit for {kind!r}.{nearest(kind, KINDS)}")


def encode(model: Any, processor: Any, demonstration: Demonstration, answer: str) -> tuple[Any, int]:
    """Model inputs `[1, length]` of prompt and answer, and how many of the last positions are the answer's.

    Raises:
        InputError: The picture cannot be read, or the answer is empty.
    """
    asked = encode_all(model, processor, [demonstration])
    prompt = _prompt(processor, demonstration)
    space = "" if prompt[-1:].isspace() else " "
    answered = _inputs(model, processor, [demonstration], [f"{prompt}{space}{answer}"])
    ids, start = answered["input_ids"][0], asked["input_ids"][0]
    shared = min(len(ids), len(start))
    common = int((ids[:shared] == start[:shared]).long().cumprod(0).sum())
    if common == len(ids):
        raise InputError(f"The answer {answer!r} has no token of its own.")
    return answered, len(ids) - common


def encode_all(model: Any, processor: Any, demonstrations: Sequence[Demonstration]) -> Any:
    """Model inputs of the prompts alone, a row for each demonstration."""
    return _inputs(model, processor, demonstrations, [_prompt(processor, one) for one in demonstrations])


def _prompt(processor: Any, demonstration: Demonstration) -> str:
    content = [{"type": "image"}, {"type": "text", "text": demonstration.prompt}]
    message = {"role": "user", "content": content}
    return str(processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False))


def _inputs(model: Any, processor: Any, demonstrations: Sequence[Demonstration], texts: list[str]) -> Any:
    pictures = [demonstration.picture for demonstration in demonstrations]
    return conversation.prepare_inputs(model, processor, RecentPictures(), pictures, texts, None, {})


def hidden_states(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Residual stream after each decoder layer `[layers, length, hidden]` of a batch of one row, in fp32."""
    with watching(anatomy.decoder_layers(model)) as seen:
        model(**batch, use_cache=False)
    return torch.stack([one[0] for one in seen])


@contextmanager
def watching(modules: Iterable[nn.Module]) -> Iterator[list[Tensor]]:
    """A list to which every output of these modules is appended, in fp32, all on the device of the first."""
    seen: list[Tensor] = []

    def keep(_: nn.Module, _args: Any, output: Any) -> None:
        hidden = (output[0] if isinstance(output, tuple) else output).float()
        seen.append(hidden.to(seen[0].device) if seen else hidden)

    handles = [module.register_forward_hook(keep) for module in modules]
    try:
        with run_uncompiled():
            yield seen
    finally:
        for handle in handles:
            handle.remove()
