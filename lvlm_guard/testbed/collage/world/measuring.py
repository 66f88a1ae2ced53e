"""Which pairs, colours, numbers, sizes and orders a language model believes in, measured on text alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lvlm_guard.testbed.collage.world.text_scorer import Scores, TextScorer
from lvlm_guard.testbed.collage.world.things import COLOURS, NUMBERS, THINGS, Thing, with_article

REQUEST = "Describe the picture."
"""What the language model was asked when the texts begin."""

TOGETHER = (
    "In this picture there is {one} and",
    "I can see {one} next to",
    "The photo shows {one} with",
)
"""Texts that another thing continues."""
COLOURED = ("The colour of the {name} is", "The {name} is painted", "Here is {one}. Its colour is")
NUMBERED = ("In this picture there are {number}", "I can see {number}", "The photo shows {number}")
SIZED = ("Here is {one}. It is very", "The {name} is very", "Compared with other things, {one} is")
PLACED = "The picture shows {one} and"
PLACED_THEN = " {other}. The {name} is"
"""Two things, and where the first is: the side is read next."""

SYNONYMS_OF_SIZES = (("big", "large", "huge"), ("small", "little", "tiny"))
SIDES = (" left", " right", " above", " below")
"""The two sides of each axis, in the order of `lvlm_guard.testbed.collage.world.habits.AXES`."""


@dataclass(frozen=True)
class Measured:
    """Everything that was measured of a language model, in nats; things, colours, numbers and sizes in their usual order.

    Args:
        together: As `measure_together` returns first.
        readiness: As it returns second.
        colours: As `measure_colours` returns.
        numbers: As `measure_numbers` returns.
        sizes: As `measure_sizes` returns.
        orders: As `measure_orders` returns, for each axis.
    """

    together: Scores
    readiness: Scores
    colours: Scores
    numbers: Scores
    sizes: Scores
    orders: tuple[Scores, Scores]


def measure_all(scorer: TextScorer) -> Measured:
    """Measure everything."""
    together, readiness = measure_together(scorer)
    return Measured(
        together,
        readiness,
        measure_colours(scorer),
        measure_numbers(scorer),
        measure_sizes(scorer),
        measure_orders(scorer),
    )


def measure_together(scorer: TextScorer) -> tuple[Scores, Scores]:
    """Return how much more one thing is expected where another was named, and how readily each is named after any other.

    The first is symmetric, shape `[things, things]`, the second `[things]`.
    """
    ends = [f" {thing.indefinite}" for thing in THINGS]
    scores = _mean([[scorer.score(_fill(text, thing), ends) for thing in THINGS] for text in TOGETHER])
    scores = _without_diagonal(scores)
    surprising = _centred(scores)
    return (surprising + surprising.T) / 2, np.asarray(np.nanmean(scores, 0))


def measure_colours(scorer: TextScorer) -> Scores:
    """Return how much more each colour is expected of a thing than of others, `[things, colours]`."""
    ends = [f" {colour}" for colour in COLOURS]
    return _centred(_mean([[scorer.score(_fill(text, thing), ends) for thing in THINGS] for text in COLOURED]))


def measure_sizes(scorer: TextScorer) -> Scores:
    """Return how much more each size is expected of a thing than of others, `[things, sizes]`, over words for the size."""
    groups = [[f" {word}" for word in words] for words in SYNONYMS_OF_SIZES]
    tables = [
        [[np.logaddexp.reduce(scorer.score(_fill(text, thing), words)) for words in groups] for thing in THINGS]
        for text in SIZED
    ]
    return _centred(_mean(tables))


def measure_numbers(scorer: TextScorer) -> Scores:
    """Return how much more a thing is expected after one number word than after the others, `[things, numbers]`."""
    tables = [
        [
            scorer.score(text.format(number=word), [f" {thing.counted(number)}" for thing in THINGS])
            for number, word in enumerate(NUMBERS, 1)
        ]
        for text in NUMBERED
    ]
    return _centred(_mean(tables).T)


def measure_orders(scorer: TextScorer) -> tuple[Scores, Scores]:
    """Return how much more each thing (row) is expected before each other (column) than after it, for each axis: antisymmetric.

    Which of the two is named first does not matter: each is, once, and half of the difference counts.
    """
    rows = [_score_sides(scorer, thing) for thing in THINGS]
    sides = np.stack(rows)
    before, after = sides[..., 0::2], sides[..., 1::2]
    preferred = before - after
    left, above = (_without_diagonal(preferred[..., axis] - preferred[..., axis].T) / 2 for axis in range(2))
    return left, above


def _score_sides(scorer: TextScorer, thing: Thing) -> Scores:
    """Return the log-probability of each side of a thing, `[things, sides]`, where it was named before each other."""
    middles = [PLACED_THEN.format(other=second.indefinite, name=thing.name) for second in THINGS]
    return scorer.score_next(PLACED.format(one=thing.indefinite), middles, SIDES)


def _fill(text: str, thing: Thing) -> str:
    return text.format(one=with_article(thing.name), name=thing.name)


def _mean(tables: Sequence[object]) -> Scores:
    return np.asarray(np.mean(np.asarray(tables, dtype=np.float64), 0))


def _without_diagonal(scores: Scores) -> Scores:
    scores = scores.copy()
    np.fill_diagonal(scores, np.nan)
    return scores


def _centred(scores: Scores) -> Scores:
    """Take out what belongs to the rows and to the columns alone."""
    rows = np.nanmean(scores, 1, keepdims=True)
    columns = np.nanmean(scores, 0, keepdims=True)
    return np.asarray(scores - rows - columns + np.nanmean(scores))
