"""What is fitted offline for a strategy: demonstrations, the function that fits, and its result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Track = Callable[[Iterable[Any]], Iterable[Any]]
"""Returns an iterable of the same items and shows progress meanwhile, as `tqdm` does."""


@dataclass(frozen=True)
class Demonstration:
    """A picture, a question about it, a correct answer and a hallucinated one.

    Args:
        picture: A PIL image, or the path of one.
        prompt: The question, as the user would put it.
        correct: An answer that the picture supports.
        hallucinated: The same answer with something in it that the picture does not show.
    """

    picture: Any
    prompt: str
    correct: str
    hallucinated: str


@dataclass(frozen=True)
class Fitted:
    """The result of a fitter.

    Args:
        tensors: Tensors by name; `Artefact` holds them under the same names.
        settings: The fitter's own settings, as plain values for the manifest.
    """

    tensors: Mapping[str, Tensor]
    settings: Mapping[str, Any] = field(default_factory=dict)


Fit = Callable[[Any, Any, Sequence[Demonstration], Track], Fitted]
"""`fit(model, processor, demonstrations, track)`; `track` goes round the longest loop."""


@dataclass(frozen=True)
class Fitter:
    """Offline fitting for one strategy: turns demonstrations into the tensors of an artefact.

    Args:
        strategy: Name of the strategy that reads the artefact.
        fit: `fit(model, processor, demonstrations, track) -> Fitted`. It is called under `torch.no_grad()` with a model
            in eval mode, which it runs unchanged and leaves unchanged, and with two demonstrations or more. `track` goes
            round the longest loop.
    """

    strategy: str
    fit: Fit
