"""What is fitted offline for a strategy: demonstrations, the function that fits, and its result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

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


Box = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels."""


@dataclass(frozen=True)
class LabelledObject:
    """Something that a picture shows.

    Args:
        name: What it is called.
        box: Left, top, right and bottom in pixels; None where nobody knows.
        attributes: What it is like, such as its colour.
    """

    name: str
    box: Box | None = None
    attributes: tuple[str, ...] = ()


@dataclass(frozen=True)
class LabelledPicture:
    """A picture, and what it shows.

    Args:
        picture: A PIL image, or the path of one.
        objects: All that it shows of what is labelled anywhere; None where nobody labelled it.
    """

    picture: Any
    objects: tuple[LabelledObject, ...] | None = None


@dataclass(frozen=True)
class LabelledPictures:
    """What a fitter with `data="pictures"` fits on.

    Args:
        pictures: The pictures to fit on.
        calibration: Further ones, labelled, on which settings are chosen and the fit is judged.
        synonyms: Further names of some objects.
        source: Where labels of the pictures come from, by a name that the fitter knows: `labels` are their own.
        labeller: For a source that is a function of the user's: from a picture to boxes (left, top, right, bottom, name).
    """

    pictures: Sequence[LabelledPicture]
    calibration: Sequence[LabelledPicture] = ()
    synonyms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    source: str = "labels"
    labeller: Any = None


@dataclass(frozen=True)
class Fitted:
    """The result of a fitter.

    Args:
        tensors: Tensors by name; `Artefact` holds them under the same names.
        settings: The fitter's own settings, as plain values for the manifest.
    """

    tensors: Mapping[str, Tensor]
    settings: Mapping[str, Any] = field(default_factory=dict)


Fit = Callable[[Any, Any, Any, Track], Fitted]
"""`fit(model, processor, data, track)`; `track` goes round the longest loop."""


@dataclass(frozen=True)
class Fitter:
    """Offline fitting for one strategy: turns demonstrations, or labelled pictures, into the tensors of an artefact.

    Args:
        strategy: Name of the strategy that reads the artefact.
        fit: `fit(model, processor, data, track) -> Fitted`. It is called under `torch.no_grad()` with a model in eval mode,
            which it runs unchanged and leaves unchanged. `data` is a sequence of two demonstrations or more, or
            `LabelledPictures` with two pictures or more. `track` goes round the longest loop.
        data: What it fits on: `demonstrations` or `pictures`.
        aliases: Other names under which `lvlm-guard fit` finds it.
    """

    strategy: str
    fit: Fit
    data: Literal["demonstrations", "pictures"] = "demonstrations"
    aliases: tuple[str, ...] = ()
