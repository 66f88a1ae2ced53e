"""The splits: scenes to train on, one by one, and scenes to measure on, which come in twins."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from lvlm_guard.errors import InputError, nearest
from lvlm_guard.testbed.collage.world.free import FLAT, LEAN, Lean, compose_free
from lvlm_guard.testbed.collage.world.scenes import EVIDENCE, CollageScene, PictureWeakness
from lvlm_guard.testbed.collage.world.twins import Twins, compose_twins

SPLITS: Mapping[str, int] = MappingProxyType({"train": 1, "calibration": 2, "iid": 3, "shift": 4, "flat": 5})
"""The splits and the number each puts into its random stream, which is what keeps them apart.

`train` leans towards the habits, `flat` has none. The others come in twins, where one keeps what the other breaks: `calibration`, on which
settings are chosen, `iid`, drawn as the training is, and `shift`, the same things by the other rendering.
"""
RENDERING: Mapping[str, str] = MappingProxyType(
    {"train": "fluent", "calibration": "fluent", "iid": "fluent", "shift": "noto", "flat": "fluent"}
)
"""By which rendering the scenes of a split are drawn."""

FREE: Mapping[str, Lean] = MappingProxyType({"train": LEAN, "flat": FLAT})
"""The splits whose scenes come one by one, and how much they lean."""


def scene(split: str, index: int, seed: int = 0, evidence: PictureWeakness = EVIDENCE) -> CollageScene:
    """Return scene number `index` of a split, whatever other scenes were made before it.

    Raises:
        InputError: There is no such split, or a number is negative.
    """
    stream = _stream(split, seed, index)
    if split in FREE:
        return compose_free(np.random.default_rng(stream), (split, seed, index), stream, evidence, FREE[split])
    return twins(split, index // 2, seed, evidence).scenes[index % 2]


def twins(split: str, number: int, seed: int = 0, evidence: PictureWeakness = EVIDENCE) -> Twins:
    """Return the two scenes `2 * number` and `2 * number + 1` of a split that comes in twins.

    Raises:
        InputError: The split has no twins, there is no such split, or a number is negative.
    """
    stream = _stream(split, seed, number)
    if split in FREE:
        raise InputError(f"collage: the scenes of {split} come one by one; use another split for twins.")
    return compose_twins(np.random.default_rng(stream), (split, seed, number), stream, evidence)


def _stream(split: str, seed: int, index: int) -> tuple[int, int, int]:
    if split not in SPLITS:
        raise InputError(f"collage: no split named {split!r}.{nearest(split, SPLITS)}")
    if seed < 0 or index < 0:
        raise InputError(f"collage: seed and index must not be negative; got seed {seed}, index {index}.")
    return SPLITS[split], seed, index
