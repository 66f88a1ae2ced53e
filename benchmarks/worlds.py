"""The two worlds of the testbed, as the scripts that compare strategies on them need them: questions, labels, demonstrations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lvlm_guard.bench.running.manifest import SuiteChoice
from lvlm_guard.strategy.fitters import Demonstration, LabelledPicture
from lvlm_guard.testbed import demonstrations, labelled
from lvlm_guard.testbed.collage import demonstrations as collage_demonstrations
from lvlm_guard.testbed.collage import labelled as collage_labelled
from lvlm_guard.testbed.collage.suite import Collage
from lvlm_guard.testbed.suite import Scenes


@dataclass(frozen=True)
class World:
    """A world that strategies are compared in.

    Args:
        name: Of its suite.
        suite: Builds the suite.
        splits: The splits that figures are reported on, and what the suite is built with for each.
        batch: Most prompts of a call.
        pictures: Labels the first scenes of a split.
        fitted_on: The split without habits that heads are fitted on; `calibration` is that of weights and thresholds.
        demonstrate: Builds so many demonstrations.
        parameters: Of strategies that need some, by name.
        left_out: Why strategies are left out, by name.
    """

    name: str
    suite: Callable[..., Any]
    splits: Mapping[str, Mapping[str, Any]]
    batch: int
    pictures: Callable[[str, int], list[LabelledPicture]]
    fitted_on: str
    demonstrate: Callable[[int], Sequence[Demonstration]]
    calibration: str = "calibration"
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)

    def choose(self, split: str) -> SuiteChoice:
        """The suite of a split, as a run takes it."""
        arguments = {"split": split, **self.splits[split]}
        return SuiteChoice(self.suite(**arguments), "ours", arguments)


SCENES = World(
    "scenes",
    Scenes,
    # Of scenes that break habits, more than 1,000 questions that habit answers at every level; half of the captions keep habits.
    {
        "counterfactual": {"design": "balanced", "seed": 41, "captions": 300, "count": 780},
        "iid": {"design": "balanced", "seed": 41, "captions": 300, "count": 450},
    },
    32,
    labelled.label_scenes,
    labelled.SPLIT,
    demonstrations.build_demonstrations,
    parameters={"rank": {"scorer": "lvlm_guard.testbed.scorer:grounding"}},
)
"""Drawn scenes. `rank` is scored by the bundled model itself, by how much the picture speaks for a sentence."""

_TWINS = {"seed": 41, "count": 150, "captions": 300, "questions": 48}
"""More than 1,000 questions and 300 captions."""

COLLAGE = World(
    "collage",
    Collage,
    {"shift": _TWINS, "iid": _TWINS},
    16,
    collage_labelled.label_scenes,
    collage_labelled.SPLIT,
    collage_demonstrations.build_demonstrations,
    left_out={"rank": "it needs a scorer, and there is none for collages"},
)
"""Collages of pictures with names."""

WORLDS: Mapping[str, World] = {world.name: world for world in (SCENES, COLLAGE)}
