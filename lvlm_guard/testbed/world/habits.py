"""What the drawn world holds and how often: names, habitual pairs, habitual colours, strength of the evidence."""

from __future__ import annotations

from dataclasses import dataclass

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.88, 0.12, 0.12),
    "orange": (0.97, 0.53, 0.05),
    "yellow": (0.97, 0.92, 0.15),
    "green": (0.12, 0.72, 0.20),
    "cyan": (0.15, 0.82, 0.88),
    "blue": (0.15, 0.28, 0.95),
    "purple": (0.62, 0.15, 0.80),
    "white": (0.98, 0.98, 0.98),
}

PAIRS: dict[str, tuple[tuple[str, str], ...]] = {
    "kitchen": (("mug", "spoon"), ("pan", "egg"), ("table", "clock")),
    "harbour": (("boat", "anchor"), ("fish", "starfish"), ("flag", "barrel")),
    "garden": (("tree", "ladder"), ("flower", "kite"), ("gate", "mushroom")),
    "street": (("car", "cone"), ("house", "moon"), ("bicycle", "sign")),
}
"""For each background, its habitual pairs: where the first of a pair is seen, the second usually is too."""

TYPICAL_COLOUR: dict[str, str] = {
    "mug": "red", "spoon": "cyan", "pan": "blue", "egg": "white", "table": "orange", "clock": "green",
    "boat": "yellow", "anchor": "purple", "fish": "orange", "starfish": "red", "flag": "green", "barrel": "blue",
    "tree": "green", "ladder": "white", "flower": "purple", "kite": "cyan", "gate": "blue", "mushroom": "red",
    "car": "cyan", "cone": "orange", "house": "purple", "moon": "yellow", "bicycle": "white", "sign": "yellow",
}  # fmt: skip

BACKGROUNDS: tuple[str, ...] = tuple(PAIRS)
CATEGORIES: tuple[str, ...] = tuple(name for pairs in PAIRS.values() for pair in pairs for name in pair)
COLOUR_NAMES: tuple[str, ...] = tuple(COLOURS)
PARTNER: dict[str, str] = {
    name: partner for pairs in PAIRS.values() for a, b in pairs for name, partner in ((a, b), (b, a))
}
HOME: dict[str, str] = {name: place for place, pairs in PAIRS.items() for pair in pairs for name in pair}


def residents(background: str) -> tuple[str, ...]:
    """The six categories at home in front of this background."""
    return tuple(name for pair in PAIRS[background] for name in pair)


@dataclass(frozen=True)
class Habits:
    """How strong the statistics are that a model can learn instead of looking. All are probabilities."""

    first: float = 0.70
    second_with_first: float = 0.93
    second_alone: float = 0.08
    intruder: float = 0.30
    typical_colour: float = 0.87
    first_left: float = 0.87
    """Where both of a pair are there: how often the first stands left of the second."""


@dataclass(frozen=True)
class EvidenceStrength:
    """How weak the picture can get: the chance of each weakness and the range it is drawn from.

    Contrast 1 is an opaque object, 0 an invisible one; saturation 1 is the full colour, 0 grey; noise is the standard
    deviation of the pixel noise where the pixel range is 0 to 1.
    """

    faint: float = 0.16
    faint_contrast: tuple[float, float] = (0.06, 0.32)
    clear_contrast: tuple[float, float] = (0.70, 1.00)
    noisy: float = 0.32
    noisy_sigma: tuple[float, float] = (0.25, 0.70)
    quiet_sigma: tuple[float, float] = (0.01, 0.06)
    faded: float = 0.10
    faded_saturation: tuple[float, float] = (0.02, 0.20)
    full_saturation: tuple[float, float] = (0.75, 1.00)


MILD = EvidenceStrength(
    faint=0.15,
    faint_contrast=(0.12, 0.45),
    clear_contrast=(0.75, 1.00),
    noisy=0.18,
    noisy_sigma=(0.08, 0.25),
    faded=0.22,
    faded_saturation=(0.05, 0.30),
)
"""What the vision tower and the first lessons of the language model see: weaker evidence would teach it to guess."""

CLEAR = EvidenceStrength(faint=0.0, noisy=0.0, faded=0.0)
"""Pictures in which nothing is weak."""
