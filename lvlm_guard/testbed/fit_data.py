"""What strategies are fitted on, of either world: labelled pictures, and demonstrations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lvlm_guard.loading import BUNDLED
from lvlm_guard.strategy.fitters import Demonstration, LabelledPicture
from lvlm_guard.testbed import demonstrations, labelled
from lvlm_guard.testbed.collage import demonstrations as collage_demonstrations
from lvlm_guard.testbed.collage import labelled as collage_labelled


@dataclass(frozen=True)
class FitData:
    """Data of one world.

    Args:
        pictures: The split whose pictures a fit learns from.
        calibration: The split it is calibrated on.
        label: Labelled pictures by split, count and seed.
        demonstrations: The split that demonstrations are of.
        demonstrate: Demonstrations by count and seed.
    """

    pictures: str
    calibration: str
    label: Callable[[str, int, int], list[LabelledPicture]]
    demonstrations: str
    demonstrate: Callable[[int, int], list[Demonstration]]


FIT_DATA: Mapping[str, FitData] = {
    BUNDLED: FitData(
        labelled.SPLIT,
        labelled.CALIBRATION,
        labelled.label_scenes,
        demonstrations.SPLIT,
        demonstrations.build_demonstrations,
    ),
    "collage": FitData(
        collage_labelled.SPLIT,
        collage_labelled.CALIBRATION,
        collage_labelled.label_scenes,
        collage_demonstrations.SPLIT,
        collage_demonstrations.build_demonstrations,
    ),
}
"""Worlds by the name that the command line gives their data."""
