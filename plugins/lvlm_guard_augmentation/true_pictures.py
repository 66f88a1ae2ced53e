"""Pictures with their truth, from demonstrations or from labels, and which of them break the habits of the rest."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lvlm_guard import InputError
from lvlm_guard_augmentation.claims import MENTION

DESCRIBE = "Describe this image."
HABITUAL = 0.6
"""Share of pictures with one object that show another one too, or show it with a value, from which that is a habit."""
LEAST = 5
"""Pictures in which something is seen before it has habits."""


@dataclass(frozen=True)
class TruePicture:
    """A picture, and what it shows.

    Args:
        picture: The picture or its path.
        prompt: How a description is asked for.
        objects: Every object, with its attributes.
    """

    picture: Any
    prompt: str
    objects: Mapping[str, frozenset[str]]


def read_truth(data: Any, values: Sequence[str]) -> list[TruePicture]:
    """Return pictures with their truth.

    Args:
        data: Demonstrations, whose correct answers name what is there; or labelled pictures, of which those for calibration
            are taken where there are some.
        values: Words that are attributes.

    Raises:
        InputError: Nothing is labelled.
    """
    labelled = getattr(data, "calibration", None) or getattr(data, "pictures", None)
    if labelled is not None:
        pictures = [
            TruePicture(entry.picture, DESCRIBE, _read_labels(entry.objects))
            for entry in labelled
            if entry.objects is not None
        ]
    else:
        pictures = [TruePicture(entry.picture, entry.prompt, read_caption(entry.correct, values)) for entry in data]
    if not any(picture.objects for picture in pictures):
        raise InputError("'revise' needs pictures whose objects are known to be fitted on: label the objects of some.")
    return pictures


def _read_labels(objects: Iterable[Any]) -> dict[str, frozenset[str]]:
    labels: dict[str, frozenset[str]] = {}
    for each in objects:
        name = each.name.lower()
        labels[name] = labels.get(name, frozenset()) | {value.lower() for value in each.attributes}
    return labels


def read_caption(text: str, values: Sequence[str]) -> dict[str, frozenset[str]]:
    """Return the objects of a true caption: the last word of every phrase with an article, and the attributes in front."""
    objects: dict[str, frozenset[str]] = {}
    for match in MENTION.finditer(text):
        words = match[0].lower().split()[1:]
        objects[words[-1]] = objects.get(words[-1], frozenset()) | {word for word in words[:-1] if word in values}
    return objects


@dataclass(frozen=True)
class PictureHabits:
    """What usually goes together in some pictures.

    Args:
        partners: The object that goes with another one most often, where it usually does.
        typical: The usual value of an object.
    """

    partners: Mapping[str, str]
    typical: Mapping[str, str]

    @classmethod
    def of(cls, pictures: Sequence[TruePicture]) -> "PictureHabits":
        """Count them."""
        counts_of_names = Counter(name for picture in pictures for name in picture.objects)
        pairs: dict[str, Counter[str]] = defaultdict(Counter)
        coloured: dict[str, Counter[str]] = defaultdict(Counter)
        for picture in pictures:
            for name, of_object in picture.objects.items():
                pairs[name].update(name_beside for name_beside in picture.objects if name_beside != name)
                coloured[name].update(of_object)
        partners = {
            name: best[0]
            for name, counts in pairs.items()
            if counts_of_names[name] >= LEAST
            and counts
            and (best := counts.most_common(1)[0])[1] >= HABITUAL * counts_of_names[name]
        }
        typical = {
            name: best[0]
            for name, counts in coloured.items()
            if sum(counts.values()) >= LEAST
            and (best := counts.most_common(1)[0])[1] >= HABITUAL * sum(counts.values())
        }
        return cls(partners, typical)

    def is_broken_by(self, picture: TruePicture) -> bool:
        """Return whether an object is there without the one that usually goes with it."""
        return any(self.partners.get(name, name) not in picture.objects for name in picture.objects)

    def is_untypical(self, picture: TruePicture, name: str) -> bool:
        """Return whether an object has another value than usual."""
        return name in self.typical and self.typical[name] not in picture.objects[name]
