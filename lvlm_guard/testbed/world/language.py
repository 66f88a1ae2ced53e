"""The few words the model knows: captions in a fixed grammar, and the vocabulary."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from lvlm_guard.testbed.world.compose import SceneObject
from lvlm_guard.testbed.world.habits import BACKGROUNDS, CATEGORIES, COLOUR_NAMES, PARTNER
from lvlm_guard.testbed.world.scenes import Scene

DESCRIBE = ("describe this image .", "describe this {background} .")
"""The two ways to ask for a caption; the second gives the background away in words."""

SYSTEM_SENTENCES = (
    "you are a confused object detector .",
    "you are a helpful assistant .",
    "please answer the question .",
    "look closely at the image .",
    "answer only with what you see .",
)
"""What may stand before the image, as a system message."""

USER = "user:"
ASSISTANT = "assistant:"
UNKNOWN, PAD, START, END, IMAGE = SPECIAL = ("<unk>", "<pad>", "<bos>", "<eos>", "<image>")

_OTHER_WORDS = (
    "in this there is a an and the are no not do you see colour what of it , . ? yes no only with to please question "
    "answer describe image picture short detail one word overview provide fuzzy objects impression "
    "left right above below or where row1 row2 row3 row4 column1 column2 column3 column4"
)

NAMED = re.compile(rf"\b(?:(?:{'|'.join(COLOUR_NAMES)})\s+)?({'|'.join(CATEGORIES)})\b", re.IGNORECASE)
"""An object named in a text, its colour included where it has one; group 1 is the object."""

_MENTION = re.compile(rf"\b({'|'.join(COLOUR_NAMES)})\s+({'|'.join(CATEGORIES)})\b")


def vocabulary() -> list[str]:
    """Every token of the model, special ones first; the position is the token id."""
    words = [USER, ASSISTANT, *BACKGROUNDS, *CATEGORIES, *COLOUR_NAMES, *_OTHER_WORDS.split()]
    words += [word for sentence in SYSTEM_SENTENCES for word in sentence.split()]
    return list(dict.fromkeys([*SPECIAL, *words]))


def caption(scene: Scene, order: Sequence[SceneObject] | None = None) -> str:
    """The true caption, as in 'in this kitchen there is a red mug , a white egg and a cyan spoon .'."""
    named = [f"a {thing.colour} {thing.category}" for thing in (scene.objects if order is None else order)]
    listed = named[0] if len(named) == 1 else f"{' , '.join(named[:-1])} and {named[-1]}"
    return f"in this {scene.background} there is {listed} ."


def spoken_order(scene: Scene, rng: np.random.Generator) -> list[SceneObject]:
    """The objects in an order someone might name them in: anyhow, but the two of a habitual pair together."""
    shuffled = [scene.objects[i] for i in rng.permutation(len(scene.objects))]
    ordered: list[SceneObject] = []
    for thing in shuffled:
        names = [named.category for named in ordered]
        partner = PARTNER[thing.category]
        ordered.insert(names.index(partner) + 1 if partner in names else len(ordered), thing)
    return ordered


def mentions(text: str) -> list[tuple[str, str]]:
    """The (colour, category) pairs a caption names, in its order, repeats included."""
    return [(colour, category) for colour, category in _MENTION.findall(text.lower())]
