"""The kinds of planted faults: what each does, where, and what a diagnosis should name."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lvlm_guard.errors import InputError, nearest
from lvlm_guard.testing.plants import installing
from lvlm_guard.testing.plants.subject import PlantBed
from lvlm_guard.testing.plants.training import Example

Kind = Literal[
    "picture_blank", "pictures_swapped",
    "patches_zero", "tower_noise",
    "projector_zero", "projector_scaled", "projector_mean", "projector_noise",
    "image_masked", "image_masked_middle", "image_masked_weakly",
    "head_copies", "mlp_bias_early", "mlp_bias_late", "residual_push",
    "yes_bias", "object_bias",
    "prior", "temperature",
]  # fmt: skip
KINDS: tuple[Kind, ...] = get_args(Kind)
STAGES = {
    "picture": "input", "pictures": "input", "patches": "tower", "tower": "tower", "projector": "projector",
    "image": "attention", "head": "decoder", "mlp": "decoder", "residual": "decoder", "yes": "output",
    "object": "output", "prior": "prior", "temperature": "decoding",
}  # fmt: skip
"""The stage that a diagnosis should name, by how the kind begins."""


@dataclass(frozen=True)
class Plant:
    """One fault, and where it is.

    Args:
        kind: What it does.
        seed: What was drawn for it.
        component: What a diagnosis should name.
        layer: In which layer, counted from 0: of the tower for tower faults, else of the decoder; of several the first.
        head: Which head.
        last: The last of several layers, excluded.
        word: What it pushes towards.
        strength: How strong it is, in units of its kind.
    """

    kind: Kind
    seed: int
    component: str
    layer: int | None = None
    head: int | None = None
    last: int | None = None
    word: str = ""
    strength: float = 1.0

    @property
    def stage(self) -> str:
        """The stage that a diagnosis should name."""
        return STAGES[self.kind.split("_")[0]]


def draw_plant(kind: Kind, seed: int, model: Any, words: Sequence[str] = ("dog",)) -> Plant:
    """Draw where and how strong a fault is; the same seed draws the same.

    Args:
        kind: What it does.
        seed: The seed.
        model: The model it is for.
        words: What object faults may push towards, a token each.

    Raises:
        InputError: There is no such kind.
    """
    if kind not in KINDS:
        raise InputError(f"No fault is called {kind!r}.{nearest(kind, KINDS)}")
    rng = random.Random(f"{kind} {seed}")  # noqa: S311 - repeatable draws are wanted
    subject = PlantBed(model, None)
    depth, heads = len(subject.layers), subject.heads
    third = max(depth // 3, 1)
    word = words[rng.randrange(len(words))]
    early, late = rng.randrange(third), depth - 1 - rng.randrange(third)
    start = rng.randrange(third, depth - third)
    draws: dict[str, dict[str, Any]] = {
        "picture_blank": {"component": "pixels"},
        "pictures_swapped": {"component": "pixels"},
        "patches_zero": {"component": "patches"},
        "tower_noise": {"component": "tower", "layer": rng.randrange(subject.tower_depth), "strength": rng.uniform(0.5, 1.5)},
        "projector_zero": {"component": "projector"},
        "projector_scaled": {"component": "projector", "strength": rng.choice((0.1, 0.3, 3.0, 10.0))},
        "projector_mean": {"component": "projector", "strength": rng.uniform(0.1, 0.5)},
        "projector_noise": {"component": "projector", "strength": rng.uniform(0.5, 1.5)},
        "image_masked": {"component": "image_mass", "layer": 0, "last": depth},
        "image_masked_middle": {"component": "image_mass", "layer": start, "last": min(start + 1 + third, depth)},
        "image_masked_weakly": {"component": "image_mass", "layer": start, "last": depth, "strength": rng.uniform(1.0, 3.0)},
        "head_copies": {"component": "head", "layer": rng.randrange(1, depth), "head": rng.randrange(heads), "word": word, "strength": rng.uniform(1.0, 2.0)},
        "mlp_bias_early": {"component": "mlp", "layer": early, "strength": rng.uniform(0.7, 1.5)},
        "mlp_bias_late": {"component": "mlp", "layer": late, "word": word, "strength": rng.uniform(0.7, 1.5)},
        "residual_push": {"component": "residual", "layer": late, "word": word, "strength": rng.uniform(0.2, 0.6)},
        "yes_bias": {"component": "output", "word": "yes", "strength": rng.uniform(2.0, 5.0)},
        "object_bias": {"component": "output", "word": word, "strength": rng.uniform(2.0, 5.0)},
        "prior": {"component": "prior", "strength": rng.uniform(0.7, 1.0)},
        "temperature": {"component": "decoding", "strength": rng.uniform(1.3, 2.0)},
    }  # fmt: skip
    return Plant(kind, seed, **draws[kind])


@contextmanager
def planted(plant: Plant, model: Any, processor: Any, examples: Sequence[Example] = ()) -> Iterator[Plant]:
    """Plant a fault for the length of a block; the model is bit-identical afterwards, also after an exception.

    Args:
        plant: The fault.
        model: The model.
        processor: Its processor.
        examples: What `prior` is trained on: inputs with the pictures of other items, and labels.

    Raises:
        InputError: `prior` without examples.
        ModelRefused: The model lacks the part that the fault is planted in.
    """
    if plant.kind == "prior" and not examples:
        raise InputError("prior is planted by training on examples with the pictures of others: pass some.")
    undo = installing.install(plant, PlantBed(model, processor), examples)
    try:
        yield plant
    finally:
        undo()
