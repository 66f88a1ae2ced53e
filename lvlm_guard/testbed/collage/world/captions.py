"""Captions in plain English: true ones for a scene, in one wording or in many."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from lvlm_guard.testbed.collage.world.habits import habits
from lvlm_guard.testbed.collage.world.scenes import CollageScene, ThingGroup
from lvlm_guard.testbed.collage.world.things import NUMBERS, THING, with_article

DESCRIBE = ("Describe the picture.", "What is in this picture?", "Describe this image.", "What do you see?")
"""The ways to ask for a caption, the one that is measured first."""

_LISTS = (
    "The picture shows {0}.",
    "There {be} {0} in the picture.",
    "In the picture there {be} {0}.",
    "I can see {0}.",
)


def caption(scene: CollageScene) -> str:
    """Return the true caption in the wording that is measured: everything that is there, with all that is known of it."""
    return describe_groups(spoken_order(scene, None))


def describe_groups(groups: Sequence[ThingGroup]) -> str:
    """Return a caption of groups in their order, in the wording that is measured."""
    return _LISTS[0].format(_listed([phrase(group) for group in groups]))


def write_caption(scene: CollageScene, rng: np.random.Generator) -> str:
    """Return a true caption in a wording drawn anew: a list, or a list and where the things are, or that alone."""
    groups = spoken_order(scene, rng)
    sized = bool(rng.random() < 0.5)
    style = rng.random()
    if len(groups) == 1 or style < 0.5:
        return _list_sentence(groups, rng, sized=sized)
    if style < 0.75:
        first, second = groups[:2]
        return f"{_list_sentence(groups, rng, sized=sized)} {_capital(_place(first, second, rng, definite=True))}"
    sentences = [_capital(_place(groups[0], groups[1], rng, definite=False, sized=sized))]
    sentences += [
        _capital(_place(after, before, rng, definite=True, sized=sized, new=True))
        for before, after in pairwise(groups[1:])
    ]
    return " ".join(sentences)


def phrase(group: ThingGroup, *, sized: bool = True, definite: bool = False) -> str:
    """Return a group in words, as "a big red dog", "three cars" or, where it was named before, "the dog"."""
    thing = THING[group.name]
    if definite:
        return f"the {thing.counted(group.number)}"
    words = [group.size if sized and group.size else "", group.colour or "", thing.counted(group.number)]
    described = " ".join(word for word in words if word)
    return with_article(described) if group.number == 1 else f"{NUMBERS[group.number - 1]} {described}"


def spoken_order(scene: CollageScene, rng: np.random.Generator | None) -> list[ThingGroup]:
    """Return the groups in an order someone might name them in, partners together; as they were drawn without `rng`."""
    drawn = range(len(scene.groups)) if rng is None else rng.permutation(len(scene.groups))
    ordered: list[ThingGroup] = []
    for at in drawn:
        group = scene.groups[int(at)]
        names = [named.name for named in ordered]
        partner = habits().partner[group.name]
        ordered.insert(names.index(partner) + 1 if partner in names else len(ordered), group)
    return ordered


def _list_sentence(groups: Sequence[ThingGroup], rng: np.random.Generator, *, sized: bool) -> str:
    be = "is" if groups[0].number == 1 else "are"
    text = _LISTS[int(rng.integers(len(_LISTS)))]
    return text.format(_listed([phrase(group, sized=sized) for group in groups]), be=be)


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _place(
    subject: ThingGroup,
    reference: ThingGroup,
    rng: np.random.Generator,
    *,
    definite: bool,
    sized: bool = False,
    new: bool = False,
) -> str:
    """Say on which side of another group one is; `new` names the first in full where the second is known already."""
    be = "is" if subject.number == 1 else "are"
    beginning = phrase(subject, sized=sized, definite=definite and not new)
    return f"{beginning} {be} {_where(subject, reference, rng)} {phrase(reference, sized=sized, definite=definite)}."


def _where(subject: ThingGroup, reference: ThingGroup, rng: np.random.Generator) -> str:
    (row, column), (other_row, other_column) = subject.cell, reference.cell
    sides = []
    if column != other_column:
        sides.append("to the left of" if column < other_column else "to the right of")
    if row != other_row:
        sides.append("above" if row < other_row else "below")
    return sides[int(rng.integers(len(sides)))]


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
